"Messages and the model card speak of the user's table and folder, not of the program."
import pandas as pd
import pytest

from hpa_fastai.all import LabelError, attach_images, find_images, read_labels
from hpa_fastai.cli.main import main
from hpa_fastai.cli.wording import for_shell
from hpa_fastai.deploy.saving import model_card
from hpa_fastai.deploy.loading import load_bundle


def test_an_empty_label_names_the_column_of_the_table(small_atlas, tmp_path, capsys):
    table = pd.read_csv(small_atlas/'train.csv').rename(columns={'Target': 'Location'}).astype({'Location': object})
    table.loc[[3, 7], 'Location'] = ''
    table.to_csv(tmp_path/'labels.csv', index=False)
    named = ['--csv', str(tmp_path/'labels.csv'), '--label-column', 'Location']
    assert main(['train', str(small_atlas), *named, '--dry-run']) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f'row 5: Location of {table.Id[3]} is empty, and 1 more; write one, or delete the row' in said
    assert 'allow_empty' not in said and 'Python' not in said
    with pytest.raises(LabelError, match='in Python: allow_empty=True keeps it'): 
        read_labels(tmp_path/'labels.csv', label_column='Location')
    assert for_shell('do this (in Python: x=True)') == 'do this'


def test_images_that_are_not_there_are_missed_in_their_folder(small_atlas):
    found = find_images(small_atlas/'train')
    labels = pd.DataFrame(dict(Id=[found.Id[0], 'B9'], Target='0'))
    with pytest.raises(ValueError, match=f'1 of 2 Ids have no image in {small_atlas/"train"}: B9'):
        attach_images(labels, found)
    with pytest.raises(ValueError, match='no image in the table of images: B9'): attach_images(labels, found.head(3))


def test_the_card_tells_the_training_in_words(trained):
    config = load_bundle(trained[1]).config
    config['training'] = dict(images=96, stages=['48 px: the head alone'], lr=0., minutes=.01, kept_of_start=1.,
                              log=[dict(stage=0, size=48, epoch=1, valid_loss=.0012, mean_ap=.98958)])
    card = model_card(config)
    assert 'Only the head was fitted' in card and 'on 96 images' in card and 'read at 48 px, normalised' in card
    for word in ('lr:', 'log:', 'kept_of_start', "{'", '48 px, 48 px'): assert word not in card
