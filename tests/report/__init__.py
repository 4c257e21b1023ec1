"""Tests of eomt.report."""
