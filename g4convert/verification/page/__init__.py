"""Draws the self-contained HTML page of a report.

html   Writes the page
plots  Draws plots as inline SVG
style  Has the style sheet
"""
