"""The engine over loaded programs and maps: writes the targets and reads the measurements."""
