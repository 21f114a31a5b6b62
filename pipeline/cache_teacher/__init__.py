"""STAGE ONE: run the teacher once and write its answers to a store."""
