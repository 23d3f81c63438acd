"""Decoding the sections of a tensor to its values, stage by stage. It knows neither files nor tensor names."""
