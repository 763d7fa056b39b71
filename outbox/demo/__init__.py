"""The demo on embedded Postgres."""
