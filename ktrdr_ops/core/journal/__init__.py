"""The journal: the append-only log of every event, in one SQLite file.

Law: nothing else opens the database, begins or commits. What decides, folds and hashes here knows no SQL.
"""
