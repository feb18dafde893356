"""Trainers, one file per method, each named as its class."""
