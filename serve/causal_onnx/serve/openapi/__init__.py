"""`/openapi.json`: what every path takes and answers, as OpenAPI 3.1 describes it."""
