"""What the numbers are: metrics, tables, figures and the report, made from files alone.

`metrics` counts pixels, `evaluate` runs it over a split and writes `metrics.json` with its two CSV files,
`tables` joins those of many runs, `figures` and `gallery` draw, `report` binds all of it into one HTML
file. Nothing here imports torch.
"""
