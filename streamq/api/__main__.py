"""`python -m streamq.api > docs/openapi.json` writes down what the API can be asked."""

import sys

import orjson

from streamq.api.application import OPERATIONS
from streamq.api.openapi import document

sys.stdout.buffer.write(orjson.dumps(document(OPERATIONS), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
