"""The compression study: models x recipes x formats x targets, one cell after another, into tables and plots.

`plan` reads the file, `run` measures what is not known yet, `results` sees the cells as rows of figures, `findings`
concludes from them, and `output` writes the page, the tables and the plots.
"""
