"""The index of one user: a folder with a database and a FAISS file. A library that knows nothing of who fills it."""
