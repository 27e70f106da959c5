"""Output of a report as files: a self-contained HTML page, and JUnit XML.

html   Writes the page from `templates/`
cards  Chooses the tables and plots that the page shows
plots  Draws plots as inline SVG
junit  Writes JUnit XML
"""
