"""What the numbers are: metrics, tables, figures and the report, made from files alone.

`metrics` counts pixels, `evaluate` runs it over a split and writes `metrics.json` with its two CSV files,
`tables` joins those of many runs, `figures`, `curves`, `gallery` and `layers` draw, `report` binds all of it into one
HTML file, whose parts, style and scripts lie in `page/`. Nothing here imports torch.
"""
