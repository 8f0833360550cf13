"""Move an orders table family, live, from a monolith's PostgreSQL to a service's own."""

__version__ = "0.1.0"
