"""The API server: requests, and pods as they change."""
