"""Stages as arrays: each codec turns the plain sections of a block into values, knowing neither files nor names."""
