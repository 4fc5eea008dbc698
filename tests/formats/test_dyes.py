"Dyes and markers in the spellings that people use, and what they may decide."
import pytest

from hpa_fastai.formats.dyes import (
    CHANNEL_MEANING, channel_of, describe_channels, describe_doubts, is_other_light, name_channels, words_in)
from hpa_fastai.formats.names import CHANNELS


SPELLINGS = {
    'blue': 'DAPI dapi Dapi Hoechst hoechst33342 Hoechst_33342 405 405nm AF405 Nucleus nuclei nuc DNA w1DAPI DRAQ5',
    'green': 'FITC GFP EGFP eGFP AF488 Alexa488 AlexaFluor488 Alexa-Fluor-488 A488 488 488nm ATTO488 protein Antibody',
    'red': 'TexasRed Texas-Red TxRed AF555 Alexa_555 AF568 TRITC 561 AF594 mCherry RFP Cy3 tubulin Microtubules MT '
           'alpha-tubulin SiR-Tubulin',
    'yellow': 'Cy5 CY5 AF647 Alexa647 633 640 AF633 Far-Red farred ATTO647N calreticulin ER ER-Tracker Calnexin'}


@pytest.mark.parametrize('channel,name', [(c, name) for c,names in SPELLINGS.items() for name in names.split()])
@pytest.mark.parametrize('around', ['{}', 'Exp12_A01_s3_{}', '{}-T2', 'Ch1 {}', '({})'])
def test_spellings(channel, name, around):
    assert channel_of(around.format(name))[0]==channel


@pytest.mark.parametrize('name', [
    'water', 'prefer', 'infrared', 'w1', 'C01', 'A01', 'Exp12', 'HPA000123', 'Cy7', 'mtDNA2x', 'dapix', 'A4051', '4880',
    'U2OS', 'plate7'])
def test_what_is_no_dye(name): assert words_in(name)==[]


def test_a_marker_says_more_than_a_dye():
    assert channel_of('Tubulin-AF647')==('red', True) and channel_of('AF647')==('yellow', False)
    assert channel_of('Calreticulin (Alexa 488)')==('yellow', True)
    assert channel_of('DAPI tubulin')==(None, True) and channel_of('GFP Cy5')==(None, False)


def test_transmitted_light():
    assert all(map(is_other_light, ['BF', 'Brightfield', 'bright-field', 'DIC', 'Phase Contrast', 'TL', 'T-PMT']))
    assert not any(map(is_other_light, ['DAPI', 'BF DAPI', 'x']))


def test_names_to_channels():
    got = name_channels(['AF647', 'DAPI', 'BF', 'w9', 'FITC', 'GFP'])
    assert got.found==dict(blue='DAPI', yellow='AF647') and got.left==['BF', 'w9']
    assert got.doubts==dict(green=['FITC', 'GFP']) and set(got.guessed)=={'AF647', 'FITC', 'GFP'}
    assert describe_doubts(got.doubts)=='FITC and GFP would both be green'
    assert describe_doubts(dict(red=['a', 'b', 'c']))=='a and b and c would all be red'
    assert describe_channels(got.found, got.guessed)==(
        'DAPI is blue (nucleus), AF647 is yellow (ER); AF647 is a dye, taken as in the Human Protein Atlas')
    assert tuple(CHANNEL_MEANING)==CHANNELS
