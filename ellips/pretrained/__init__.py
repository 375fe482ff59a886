"""Encoders that ship with the project, each with a record of how it was made and the script that made it."""
