"""The prompt since November 2026: the rules of the game, the whole course of a run, and one schema for all answers."""
