"""Numbers from arrays: numpy and scipy only. Nothing here knows files, frames or models."""
