"""Questions that trained imaging flows can answer, each ready to run: `robustflow study NAME`.

A study is a TOML file, ``NAME.toml``, and a module of that name, ``NAME.py``, which defines

    measure(cell: Cell) -> list[Row]                        of one trained flow
    figure(rows: Sequence[Row], study: Study) -> Figure     of all of them

and may define ``prepare(folder: Path) -> None``, which writes pictures for its trainings there.
"""
