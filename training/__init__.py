"""Class folders -> catalog -> stream -> workers -> best checkpoint -> report. `run.py` is the table of contents."""
