"""Where runs happen. An executor pulls jobs from a driver and pushes what they report, until there
is none left.

This file imports nothing: each worker process imports it on its way to worker.py or ray/actor.py.
"""
