"""The report's page and the dashboard: words, tables, figures."""

# What `scaling-search figure` and `scaling_search.open` draw (figures/static.py). Here, since the
# command line needs the names and not plotly.
FIGURES = ("front", "map", "differences", "curves", "lengths")
