"""Benchmarks: ordermigrate beside its peers, in turn, on two real servers, in one run."""
