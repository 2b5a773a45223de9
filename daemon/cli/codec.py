"""`lakehouse codec`: its list of commands. Those that start a job and watch it are in codec_jobs.py, the others in
codec_artifacts.py."""

from cyclopts import App

from daemon.cli import codec_artifacts, codec_jobs

app = App(name="codec", help="Compress tensors and vectors, certify what that does to them, put it to use.")

app.command(codec_jobs.calibrate)
app.command(codec_jobs.sweep)
app.command(codec_jobs.probe)
app.command(codec_jobs.certify)
app.command(codec_artifacts.frontier)
app.command(codec_artifacts.graduate)
app.command(codec_artifacts.withdraw)
app.command(codec_artifacts.list_artifacts, name="list")
app.command(codec_artifacts.show)
app.command(codec_artifacts.decode)
app.command(codec_artifacts.drop)
app.command(codec_artifacts.jobs)
app.command(codec_artifacts.cancel)
