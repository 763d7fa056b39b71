"""What `outbox doctor` reads of the database. Each check only reads, and none scans a table that grows with history.

A check is a coroutine that is given an autocommit connection and returns findings. Whoever calls it turns
psycopg.Error into a warning, so that one that fails stops no other. The list of all stands in
doctor/examination.py.
"""
