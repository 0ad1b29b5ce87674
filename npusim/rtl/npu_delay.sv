// DEPTH registers in a row; a wire where DEPTH is 0.

module npu_delay #(
    parameter int BITS  = 1,
    parameter int DEPTH = 1
) (
    input  logic            clk,
    input  logic [BITS-1:0] in,
    output logic [BITS-1:0] out
);
  // One register per generate block: simulators are far slower on one long shift register, and some refuse the loop.
  for (genvar i = 0; i < DEPTH; i++) begin : g_stage
    logic [BITS-1:0] q;
    if (i == 0) begin : g_first
      always_ff @(posedge clk) q <= in;
    end else begin : g_next
      always_ff @(posedge clk) q <= g_stage[i-1].q;
    end
  end
  if (DEPTH == 0) begin : g_wire
    assign out = in;
  end else begin : g_out
    assign out = g_stage[DEPTH-1].q;
  end
endmodule
