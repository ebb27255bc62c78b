"""A program that knows OpenAI's API and nothing of swarmctl: client.py URL QUESTION"""

import json
import sys
import urllib.request

url, question = sys.argv[1:]
body = {"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": question}]}
request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())  # noqa: S310
with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
    print(json.load(reply)["choices"][0]["message"]["content"])
    print(f"({reply.headers['x-swarmctl-model']} on {reply.headers['x-swarmctl-host']})")
