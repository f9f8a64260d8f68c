"""The page of evidence, from the committed results alone; see scripts/make_report.py."""
