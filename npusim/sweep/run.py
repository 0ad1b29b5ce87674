"""``npusim sweep``: which points, in which order, and what is written about them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from npusim.atomic_file import write_atomically
from npusim.clips import Notify
from npusim.sweep import runners
from npusim.sweep.pareto import front, plot, table
from npusim.sweep.point import OK, Record
from npusim.sweep.space import Point, Space, Values, load_space
from npusim.sweep.store import Store, read_fidelity, row_of

Runner = Callable[[Sequence[Point]], Generator[Record, None, None]]


def sweep(
    file: str | Path,
    out: str | Path,
    *,
    jobs: int = 1,
    dask: str | None = None,
    notify: Notify | None = None,
) -> list[dict[str, Any]]:
    """Evaluate the points of a sweep file that ``out`` does not hold yet; returns all its points, flat.

    Args:
        file: see README.md in this folder.
        out: folder of results: new, empty, or that of an earlier sweep, which then goes on.
        jobs: processes on this machine.
        dask: address of a Dask scheduler to use instead.
        notify: told of progress.

    Raises:
        UserError: the file, the folder or the address is at fault.
        KeyboardInterrupt: what was finished is kept, and the tables are not renewed.
    """
    space = load_space(file)
    fidelity = read_fidelity(space.fidelity)
    store = Store(Path(out), space)

    def run(points: Sequence[Point]) -> Generator[Record, None, None]:
        return runners.on_dask(points, dask) if dask else runners.local(points, jobs)

    for points in _search(space, store, fidelity):
        _evaluate(points, store, run, notify)
    return _write(space, store, fidelity)


def _evaluate(points: Sequence[Point], store: Store, run: Runner, notify: Notify | None) -> None:
    """Evaluate those that are not there yet, each once."""
    new = {point.key: point for point in points if point.key not in store.records}
    total, done = len({point.key for point in points}), len({point.key for point in points}) - len(new)
    if notify:
        notify("sweep", done, total)
    if not new:
        return
    with closing(run(list(new.values()))) as records:
        for record in records:
            store.add(record)
            done += 1
            if notify:
                notify("sweep", done, total)


def _search(space: Space, store: Store, fidelity: Sequence[dict[str, str]]) -> Iterator[list[Point]]:
    """Batches of points; each may depend on the records of those before it, and on nothing else but the seed."""
    if space.search == "grid":
        # The methods outside, the machines inside: neighbours share a quantized model.
        names = sorted(space.axes, key=lambda name: (name.startswith("machine."), name))
        yield [space.point(dict(zip(names, values, strict=True)))
               for values in itertools.product(*(space.axes[name] for name in names))]  # fmt: skip
    elif space.search == "random":
        rng = np.random.default_rng(space.seed)
        wanted = min(space.points, space.size)
        found = dict[str, Point]()
        while len(found) < wanted:
            point = space.point({name: values[rng.integers(len(values))] for name, values in space.axes.items()})
            found.setdefault(point.key, point)
        yield sorted(found.values(), key=lambda point: str({n: v for n, v in point.values.items() if "." not in n}))
    else:
        yield from _nsga2(space, store, fidelity)


def _nsga2(space: Space, store: Store, fidelity: Sequence[dict[str, str]]) -> Iterator[list[Point]]:
    """Generations of optuna's NSGA-II. Asked again with the same records it proposes the same points, so it resumes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(population_size=space.population, seed=space.seed)
    directions: Any = ["minimize" if way == "min" else "maximize" for way in space.objectives.values()]
    study = optuna.create_study(directions=directions, sampler=sampler)
    asked = 0
    while asked < space.points:
        trials = [study.ask() for _ in range(min(space.population, space.points - asked))]
        asked += len(trials)
        points = [space.point(_suggest(trial, space)) for trial in trials]
        yield points
        for trial, point in zip(trials, points, strict=True):
            row = row_of(store.records[point.key], fidelity)
            values = [row.get(name) for name in space.objectives]
            if row["status"] == OK and all(isinstance(value, int | float) for value in values):
                study.tell(trial, [float(value) for value in values if value is not None])
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _suggest(trial: Any, space: Space) -> Values:
    """Numbers in their order, everything else by name."""
    values = {}
    for name, choices in space.axes.items():
        if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
            values[name] = sorted(choices)[trial.suggest_int(name, 0, len(choices) - 1)]
        else:
            values[name] = choices[trial.suggest_categorical(name, list(range(len(choices))))]
    return values


def _write(space: Space, store: Store, fidelity: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """The tables of all points that the folder holds."""
    rows = [row_of(store.records[key], fidelity) for key in sorted(store.records)]
    store.write_parquet(rows)
    best = front([row for row in rows if row["status"] == OK], space.objectives)
    columns = [*space.objectives, *space.axes, "key"]
    as_csv, as_text = table(best, columns)
    write_atomically(store.folder / "pareto.csv", as_csv)
    write_atomically(store.folder / "pareto.md", as_text)
    picture = plot(rows, best, space.objectives)
    if picture is not None:
        write_atomically(store.folder / "pareto.png", picture)
    return rows
