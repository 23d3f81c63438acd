"""From the sections of a tensor to its values, stage by stage; knows neither files nor names."""
