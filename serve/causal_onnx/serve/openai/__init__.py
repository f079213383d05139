"""The endpoints that clients of OpenAI's API call."""
