"""Defects that were put in on purpose: each turns a test red, or the tests are worth less than they look."""
