"""A client of an OpenAI-compatible server."""

import os
import urllib.parse

import openai

from labeling.settings import Settings


def connect(settings: Settings) -> openai.AsyncOpenAI:
  """Returns a client without retries of its own.

  The key comes from the environment and goes nowhere but to the server.

  Raises:
    ValueError: OpenAI is asked without a key.
  """
  key = os.environ.get(settings.api_key_variable)
  host = urllib.parse.urlparse(settings.endpoint).hostname or ""
  if not key and host.endswith("openai.com"):
    raise ValueError(
      f"{host} needs a key, got none in the environment variable"
      f" {settings.api_key_variable}. Set it, or name another endpoint with"
      " --config.labeling.endpoint."
    )
  return openai.AsyncOpenAI(
    api_key=key or "none",
    base_url=settings.endpoint,
    max_retries=0,
    timeout=settings.timeout,
  )
