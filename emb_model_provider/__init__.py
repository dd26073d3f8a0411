"""The common ground: settings, model map, wire format, errors and logs; imports nothing heavy."""
