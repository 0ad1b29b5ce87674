"""A timeline to look at without a network: one HTML file with the slices of a trace, drawn on a canvas.

It shows units, instructions and their tokens; the counters are in the Perfetto trace only.
"""

from __future__ import annotations

import json
from html import escape

from npusim.html.source import groups_by_time, layer_group
from npusim.html.style import CYCLE
from npusim.trace.part import Part
from npusim.trace.perfetto import BARRIERS, Window, arguments, flows, slice_name, within
from npusim.units import UNITS

GROUPS = len(CYCLE) - 1
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>@TITLE@</title><style>body{font:14px system-ui,"DejaVu Sans",sans-serif;color:#1a1a1a;background:#fff;margin:9px}
canvas{width:100%;border:1px solid #c9d3dc;cursor:grab}#tip{white-space:pre-wrap;font:12.5px monospace;min-height:15em}
.key{display:inline-block;margin-right:14px}.key i{display:inline-block;width:14px;height:14px;margin-right:4px;
border:1px solid #1a1a1a;vertical-align:-2px}</style></head><body><h3>@TITLE@</h3>
<p>Wheel: zoom. Drag: move. Point at a slice: what it is, and its tokens. Double click: all.</p><div id="keys"></div>
<canvas id="c" height="@HEIGHT@"></canvas><div id="tip"></div><script>
const D=@DATA@;const c=document.getElementById("c"),g=c.getContext("2d"),tip=document.getElementById("tip");
const keys=document.getElementById("keys");D.groups.forEach((n,i)=>{const k=document.createElement("span");
k.className="key";const b=document.createElement("i");b.style.background=D.colours[i];k.append(b,n);keys.append(k)});
let a=D.first,b=D.last,hot=-1,drag=null;const L=70,H=46,T=22;
const x=t=>L+(t-a)/(b-a)*(c.width-L),t=p=>a+(p-L)/(c.width-L)*(b-a);
function draw(){c.width=c.clientWidth;g.clearRect(0,0,c.width,c.height);g.font="12px sans-serif";
for(let i=0;i<=8;i++){const v=a+(b-a)*i/8,p=x(v);g.strokeStyle="#d9d9d9";g.beginPath();g.moveTo(p,T);
g.lineTo(p,c.height);g.stroke();g.fillStyle="#1a1a1a";g.fillText(Math.round(v).toLocaleString("en"),Math.min(p+2,c.width-70),14)}
D.slices.forEach((s,i)=>{if(s[2]<a||s[1]>b)return;const p=Math.max(L,x(s[1])),w=Math.max(1,x(s[2])-p),y=T+s[0]*H;
g.fillStyle=D.colours[s[3]];g.fillRect(p,y+4,w,H-10);if(i==hot||w>6){g.strokeStyle="#1a1a1a";g.lineWidth=i==hot?3:.5;
g.strokeRect(p,y+4,w,H-10)}if(w>60){g.save();g.beginPath();g.rect(p,y,w,H);g.clip();g.fillStyle="#fff";
const m=g.measureText(s[4]).width;
g.fillRect(p+3,y+12,Math.min(m+4,w-6),16);g.fillStyle="#1a1a1a";g.fillText(s[4],p+5,y+24);
g.restore()}});g.lineWidth=1.5;D.flows.forEach(f=>{if(f[0]!=hot&&f[1]!=hot)return;
const s=D.slices[f[0]],e=D.slices[f[1]];
g.strokeStyle=f[2]=="raw"?"#D55E00":"#0072B2";g.setLineDash(f[2]=="raw"?[]:[5,4]);g.beginPath();
g.moveTo(x(s[2]),T+s[0]*H+H/2);
g.lineTo(x(e[1]),T+e[0]*H+H/2);g.stroke();g.setLineDash([])});
g.fillStyle="#fff";g.fillRect(0,T,L-2,c.height);g.fillStyle="#1a1a1a";D.tracks.forEach((n,i)=>g.fillText(n,4,T+i*H+H/2+2))}
c.onwheel=e=>{e.preventDefault();const m=t(e.offsetX),k=e.deltaY>0?1.25:.8;a=m-(m-a)*k;b=m+(b-m)*k;
a=Math.max(a,D.first);b=Math.min(Math.max(b,a+10),D.last);draw()};
c.onmousedown=e=>drag=[e.offsetX,a,b];window.onmouseup=()=>drag=null;c.ondblclick=()=>{a=D.first;b=D.last;draw()};
c.onmousemove=e=>{if(drag){const d=(e.offsetX-drag[0])/(c.width-L)*(drag[2]-drag[1]);
const m=Math.min(Math.max(d,drag[2]-D.last),drag[1]-D.first);a=drag[1]-m;b=drag[2]-m;draw();return}
const k=Math.floor((e.offsetY-T)/H),v=t(e.offsetX);hot=D.slices.findIndex(s=>s[0]==k&&s[1]<=v&&v<s[2]);
tip.textContent=hot<0?"":D.slices[hot][4]+"\\ncycles "+D.slices[hot][1]+" to "+D.slices[hot][2]+"\\n"+
Object.entries(D.slices[hot][5]).map(o=>o[0]+": "+o[1]).join("\\n");draw()};window.onresize=draw;draw();
</script></body></html>
"""


def viewer(part: Part, title: str, window: Window | None = None) -> str:
    """The page about one part; of ``window``, everything that overlaps it."""
    first, last = window or (0, part.timing.total_cycles)
    groups, shown = groups_by_time(part, GROUPS), within(part, first, last)
    slices, tracks = [], part.program.machine.units
    for index in shown:
        barrier, name = bool(part.cost.barrier[index]), layer_group(part.layer(index))
        track = len(tracks) if barrier else tracks.index(UNITS[part.instructions[index].unit])
        group = groups.index(name) if name in groups else len(groups)
        span = int(part.start[index]), int(part.end[index])
        slices.append([track, *span, group, slice_name(part, index), arguments(part, index)])
    place = {index: position for position, index in enumerate(shown)}
    data = {
        "first": first, "last": last, "slices": slices, "tracks": [*tracks, BARRIERS], "groups": [*groups, "others"],
        "colours": [colour for colour, _ in CYCLE[: len(groups)]] + [CYCLE[-1][0]],
        "flows": [[place[s], place[t], kind] for s, t, kind in flows(part, shown)],
    }  # fmt: skip
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    height = str(22 + 46 * (len(tracks) + 1))
    return (
        PAGE.replace("@HEIGHT@", height).replace("@TITLE@", escape(title).replace("@", "&#64;")).replace("@DATA@", text)
    )
