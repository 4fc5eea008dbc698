"Watching a folder that a microscope writes: everything once, nothing too early, nothing lost."
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.data.labels import HPAError
from hpa_fastai.deploy.tables import read_predictions
from hpa_fastai.deploy.watch import FolderWatcher, watch
import programs
from microscopes import write_operetta, write_yokogawa
from pictures import as_camera

CHANNELS = ('red', 'green', 'blue', 'yellow')


@pytest.fixture(scope='module')
def predictor(trained): return Predictor(trained[1], bs=4, device='cpu')


@pytest.fixture
def rows(small_atlas): return find_images(small_atlas/'train').head(6).to_dict('records')


@pytest.fixture
def plate(tmp_path):
    (tmp_path/'plate').mkdir()
    return tmp_path/'plate'


def copy(row, to, channels=CHANNELS):
    to.mkdir(exist_ok=True, parents=True)
    for c in channels: shutil.copy(row[c], to)


def run(plate, predictor, out, microscope=lambda: None, timeout=1.2, settle=.25, **kwargs):
    thread = threading.Thread(target=microscope)
    thread.start()
    journal = watch(plate, predictor, out, timeout=timeout, settle=settle, progress=False, **kwargs)
    thread.join()
    return journal, read_predictions(out)


@pytest.mark.parametrize('poll', [False, True])
def test_each_field_of_view_once_as_it_completes(plate, predictor, rows, tmp_path, poll):
    def microscope():
        copy(rows[0], plate)
        time.sleep(.2)
        for c in CHANNELS:  # slowly, under other names, into a folder that is new
            (plate/'well2'/'later').mkdir(parents=True, exist_ok=True)
            shutil.copy(rows[1][c], plate/'well2'/'later'/f'.{Path(rows[1][c]).name}.tmp')
            time.sleep(.05)
            os.rename(
                plate / 'well2' / 'later' / f'.{Path(rows[1][c]).name}.tmp',
                plate / 'well2' / 'later' / Path(rows[1][c]).name,
            )
        copy(rows[2], plate, CHANNELS[:3])
        shutil.copy(rows[3]['red'], plate/'.hidden_red.png')
        time.sleep(.6)
        shutil.copy(rows[2]['yellow'], plate)
    journal, df = run(plate, predictor, tmp_path/'p.csv', microscope, poll=poll)
    assert sorted(df.Id) == sorted(r['Id'] for r in rows[:3]) and (df['error'] == '').all() and not journal.waiting
    whole = predictor(plate).set_index('Id').loc[df.Id]
    assert (whole['Predicted'].to_numpy() == df['Predicted'].to_numpy()).all()


def test_a_file_that_grows_slowly_is_waited_for(plate, predictor, rows, tmp_path):
    data = Path(rows[0]['green']).read_bytes()
    def microscope():
        copy(rows[0], plate, ('red', 'blue', 'yellow'))
        with open(plate/Path(rows[0]['green']).name, 'wb') as f:
            for k in (200, 400, len(data)):  # with pauses that are longer than it takes to settle
                f.write(data[f.tell():k])
                f.flush()
                time.sleep(.6)
    _, df = run(plate, predictor, tmp_path/'p.csv', microscope)
    assert df.Id.tolist() == [rows[0]['Id']] and df['error'].tolist() == ['']


def test_a_file_that_stays_broken_gets_its_row(plate, predictor, rows, tmp_path):
    copy(rows[0], plate)
    copy(rows[1], plate)
    (plate/Path(rows[0]['green']).name).write_bytes(b'broken for good')
    _, df = run(plate, predictor, tmp_path/'p.csv', settle=.1, timeout=2.5)
    assert sorted(df.Id) == sorted([rows[0]['Id'], rows[1]['Id']])
    assert 'not a PNG' in df.set_index('Id')['error'][rows[0]['Id']]


def test_a_short_timeout_leaves_time_to_settle(plate, predictor, rows, tmp_path):
    for row in rows[:2]: copy(row, plate)
    journal, df = run(plate, predictor, tmp_path/'p.csv', timeout=.1, settle=1.2)
    assert not journal.waiting and list(df['error']) == ['', '']


def test_what_never_completes_is_reported(plate, predictor, rows, tmp_path):
    copy(rows[0], plate)
    copy(rows[1], plate, ('red', 'green'))
    journal, df = run(plate, predictor, tmp_path/'p.csv')
    assert [i for i, _ in journal.waiting] == [rows[1]['Id']]
    assert 'no blue and no yellow' in df.set_index('Id')['error'][rows[1]['Id']]


def test_a_restart_goes_on(plate, predictor, rows, tmp_path, trained):
    copy(rows[0], plate)
    run(plate, predictor, tmp_path/'p.csv')
    before = (tmp_path/'p.csv').read_bytes()
    copy(rows[1], plate)
    _, df = run(plate, predictor, tmp_path/'p.csv')
    assert df.Id.tolist() == [rows[0]['Id'], rows[1]['Id']] and (tmp_path/'p.csv').read_bytes().startswith(before)
    with pytest.raises(HPAError, match='tta was False'):
        watch(plate, Predictor(trained[1], bs=4, tta=True), tmp_path / 'p.csv', timeout=0.1)
    (tmp_path/'mine.csv').write_text('mine')
    with pytest.raises(HPAError, match='no record'): watch(plate, predictor, tmp_path/'mine.csv', timeout=.1)
    with pytest.raises(HPAError, match='no such folder'): watch(tmp_path/'nowhere', predictor, tmp_path/'q.csv')


def test_what_came_after_a_timeout_takes_its_row(plate, predictor, rows, tmp_path):
    "A row that says what is missing is no answer: once it is there, there is one, and one row"
    copy(rows[0], plate)
    copy(rows[1], plate, CHANNELS[:3])
    _, df = run(plate, predictor, tmp_path/'p.csv', timeout=.4)
    assert 'no yellow' in df.set_index('Id')['error'][rows[1]['Id']]
    journal, df = run(plate, predictor, tmp_path/'p.csv', timeout=.4)
    assert len(df) == 2 and [i for i, _ in journal.waiting] == [rows[1]['Id']]  # it is still missing, and said
    shutil.copy(rows[1]['yellow'], plate)
    journal, df = run(plate, predictor, tmp_path/'p.csv', timeout=.4)
    assert sorted(df.Id) == sorted(r['Id'] for r in rows[:2]) and (df['error'] == '').all() and not journal.waiting
    assert not journal.errors and len(journal) == 2


@pytest.mark.parametrize('when', ['while it watches', 'before a restart'])
def test_what_is_acquired_again_is_predicted_again(plate, predictor, rows, tmp_path, when):
    copy(rows[0], plate)
    copy(rows[1], plate)
    out = tmp_path/'p.csv'
    def again():
        while when == 'while it watches' and rows[0]['Id'] not in (out.read_text() if out.exists() else ''):
            time.sleep(0.05)
        for c in CHANNELS: shutil.copy(rows[2][c], plate/Path(rows[0][c]).name)
    if when == 'before a restart': run(plate, predictor, out, timeout=.4)
    with pytest.warns(UserWarning, match=f'acquired again.*{rows[0]["Id"]}'):
        journal, df = run(plate, predictor, out, again, timeout=2.5)
    assert sorted(df.Id) == sorted(r['Id'] for r in rows[:2]) and len(journal) == 2
    now, saved = predictor(plate).set_index('Id').loc[df.Id], df.set_index('Id')
    assert (now[now.columns[2]]-saved[now.columns[2]]).abs().max() < 1e-5
    before = out.read_bytes()
    run(plate, predictor, out, timeout=.4)
    assert out.read_bytes() == before


def test_ctrl_c_ends_cleanly(plate, rows, trained, tmp_path):
    copy(rows[0], plate)
    copy(rows[1], plate, ('red',))
    args = ['predict', str(plate), '--model', str(trained[1]), '--out', str(tmp_path/'p.csv')]
    args += ['--watch', '--settle', '.2', '--no-progress']
    p = programs.Program(programs.COMMAND, *args)
    for _ in range(300):
        if (tmp_path/'p.csv').exists() and (tmp_path/'p.csv').read_bytes().count(b'\n') == 2: break
        time.sleep(.1)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=20)
    assert p.returncode == 1 and '1 fields of view in' in out and 'no green and no blue and no yellow' in err
    assert 'Traceback' not in err
    assert len(read_predictions(tmp_path/'p.csv')) == 1


def test_depth_of_the_first_pictures_holds_and_what_does_not_fit_is_an_error(plate, predictor, small_atlas, tmp_path):
    ids = find_images(small_atlas/'train').Id[:4].tolist()
    as_camera(small_atlas/'train', plate, ids=set(ids[:2]))
    def microscope():
        time.sleep(.6)
        as_camera(small_atlas/'train', plate, 16383/255, {ids[2]})
    journal, df = run(plate, predictor, tmp_path/'p.csv', microscope, timeout=3)
    assert sorted(df.Id[df['error']=='']) == ids[:2] and 'does not fit into bits=12' in df['error'].iloc[-1]
    as_camera(small_atlas/'train', plate, 16383/255, {ids[3]})  # a watch that goes on keeps the depth
    journal, df = run(plate, predictor, tmp_path/'p.csv')
    assert sorted(df.Id[df['error']!='']) == ids[2:] and journal.about['bits'] == 12


def test_a_group_is_refused_not_ignored(plate, tmp_path, capsys):
    assert main(['predict', str(plate), '--out', str(tmp_path/'p.csv'), '--watch', '--group', 'Well']) == 2
    assert '--group' in capsys.readouterr().err and not (tmp_path/'p.csv').exists()


def test_a_plate_whose_index_comes_last(plate, predictor, tmp_path):
    "A CellVoyager writes wells one after the other, and the list of all images in the end"
    done = write_yokogawa(tmp_path/'whole', ['C03', 'C04'], n_fields=2)
    first = [done/'protocol.mes', *sorted(done.glob('*_C03_*.tif'))]
    rest = [*sorted(done.glob('*_C04_*.tif')), done/'MeasurementDetail.mrf', done/'MeasurementData.mlf']
    def microscope():
        for file in (*first, None, *rest):
            if file is None: time.sleep(.8)
            else: shutil.copy(file, plate)
            time.sleep(.02)

    journal, table = run(plate, predictor, tmp_path/'out.csv', microscope)
    assert sorted(table.Id)==[f'plate7_C0{w}_f{f}' for w in (3, 4) for f in (1, 2)]
    assert table.error.eq('').all() and not journal.waiting
    assert dict(zip(table.Id, table.well))['plate7_C04_f2']=='C04'


def test_a_channel_of_a_plate_that_never_comes_is_reported(plate, predictor, tmp_path):
    write_yokogawa(tmp_path/'whole', ['C03'], n_fields=2)
    def microscope():
        for file in sorted((tmp_path/'whole').iterdir()):
            if not file.name.endswith('F002L01A03Z01C03.tif'): shutil.copy(file, plate)

    _, table = run(plate, predictor, tmp_path/'out.csv', microscope)
    assert 'never completed: no red channel' in dict(zip(table.Id, table.error))['plate7_C03_f2']


def test_a_plate_without_names_of_channels_waits_for_its_index(plate, predictor, tmp_path):
    write_operetta(tmp_path/'whole', [(3, 11)])
    def microscope():
        for file in sorted((tmp_path/'whole'/'Images').glob('*.tiff')): shutil.copy(file, plate)
        time.sleep(.8)
        shutil.copy(tmp_path/'whole'/'Images'/'Index.xml', plate)

    with pytest.warns(UserWarning, match='say which is red.*; looking again'):
        _, table = run(plate, predictor, tmp_path/'out.csv', microscope)
    assert list(table.Id)==['plate_C11_f1', 'plate_C11_f2'] and table.error.eq('').all()


@pytest.mark.parametrize('poll', [False, True])
def test_no_settling_at_all(plate, predictor, rows, tmp_path, poll):
    copy(rows[0], plate)
    stop = threading.Event()
    timer = threading.Timer(20, stop.set)
    timer.start()
    journal, df = run(plate, predictor, tmp_path/'p.csv', timeout=.5, settle=0, poll=poll, stop=stop)
    timer.cancel()
    assert list(df.Id) == [rows[0]['Id']] and not stop.is_set() and not journal.waiting


def test_after_a_slow_look_the_next_one_waits_as_long(plate, predictor, rows, tmp_path, monkeypatch):
    module, clock, looks = sys.modules[FolderWatcher.__module__], [0.], []
    def slow(*args, **kwargs):
        looks.append(clock[0])
        clock[0] += 5
        return find_images(*args, **kwargs)
    def each_second(*args, **kwargs):
        for _ in range(20):
            clock[0] += 1
            yield ()
    copy(rows[0], plate)
    monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(module, 'find_images', slow)
    monkeypatch.setattr(module, '_wake_ups', each_second)
    journal = watch(plate, predictor, tmp_path/'p.csv', progress=False)
    assert looks == [1, 11, 21, 31, 40] and list(journal.done) == [rows[0]['Id']]  # the last one is at the end
