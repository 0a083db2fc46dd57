"""The engine over loaded programs and maps: who is measured, and reading what they counted."""
