"""`gather demo`: a small dense retriever, trained as DPR trains its own, on the standard library's docstrings."""
