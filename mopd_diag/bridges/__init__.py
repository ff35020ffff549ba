"""Trainers outside: a plan's MOPD stage written for them, what they log and reward on the way, their callbacks."""
