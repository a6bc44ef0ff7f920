"""What the numbers are: metrics, tables, figures and the report, made from files alone.

`scores` counts pixels and writes `metrics.json` with its CSV files, `tables` joins those of many runs, `report` draws
figures and galleries and binds all of it into one HTML file. Scoring, tables and report start without torch; the
sweep of background scores makes labels, for which it loads stage one.
"""
