"""What `swarmctl up` makes true of a host, as a pyinfra deploy; bench/up.py runs it where all is true.

The same steps as in up.yml, each by pyinfra's own means; the data come from the bench's inventory.
"""

from io import StringIO

from pyinfra import host
from pyinfra.facts.files import File
from pyinfra.facts.server import Command
from pyinfra.operations import files, server

data = host.data
runtime = f"{data.data_dir}/runtimes/llamacpp/{data.runtime_key}"
folder = f"{data.data_dir}/servers/{data.server_name}"
ALIVE = f'cd {folder} && kill -0 "$(cat supervisor.pid)" && kill -0 "$(cat server.pid)" && echo yes || true'

if not host.get_fact(File, path=f"{runtime}/.complete"):
    files.put(name="The archive is there", src=data.runtime_archive, dest=f"{runtime}.tar.gz")
    server.shell(name="llama.cpp is unpacked",
                 commands=[f"mkdir -p {runtime} && tar -xzf {runtime}.tar.gz -C {runtime}"])

files.put(name="The model's bytes are there", src=data.model_file, dest=f"{data.data_dir}/blobs/{data.blob}")

files.put(name="The server's command is as wanted", src=StringIO(data.run_script), dest=f"{folder}/run",
          mode="700")

if host.get_fact(Command, command=ALIVE) != "yes":
    server.shell(name="The server runs",
                 commands=[f"setsid sh {folder}/supervise.sh {folder} </dev/null >/dev/null 2>&1 &"])
