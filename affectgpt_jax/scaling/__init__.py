"""Scaling-law experiments: a study is planned, run, fitted and reported."""
