"Training that goes on from a model of one's own."
import pytest
import torch

from hpa_fastai.all import HPA28, HPAError, auto_learner, create_model, load_bundle


@pytest.fixture
def bundle(make_learner, tmp_path):
    make_learner('resnet10t', 32).save_bundle(tmp_path/'bb')
    return tmp_path/'bb'


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('file', ['', 'model.safetensors'])
def test_a_bundle_gives_body_and_head(bundle, make_learner, file):
    there, learn = load_bundle(bundle), make_learner('resnet10t', 32, pretrained=bundle/file)
    for name, t in learn.model.state_dict().items(): assert torch.equal(t.cpu(), there.model.state_dict()[name]), name
    assert learn.model.known == list(HPA28.classes) and learn.knows_cells and learn.start_weights
    assert auto_learner(learn.dls, pretrained=bundle/file).model.config['arch'] == 'resnet10t'
    learn.fit_progressive(sizes=(32,), epochs=1, verbose=False)


@pytest.mark.filterwarnings('ignore')
def test_classes_go_by_their_names(bundle):
    there = load_bundle(bundle).model[1][-1]
    model = create_model('resnet10t', 3, bundle, 32, classes=['Cytosol', 'Novel', 'Nucleoplasm'])
    assert model.known == ['Cytosol', 'Nucleoplasm']
    for i, name in ((0, 'Cytosol'), (2, 'Nucleoplasm')):
        assert torch.equal(model[1][-1].weight[i], there.weight[list(HPA28.classes).index(name)])
    assert torch.equal(model[1][2].running_mean, load_bundle(bundle).model[1][2].running_mean)


@pytest.mark.filterwarnings('ignore')
def test_what_is_not_the_same_network(bundle, make_learner, tmp_path):
    with pytest.raises(HPAError, match="a model of resnet10t, not of lenet5; pass arch='resnet10t'"):
        make_learner('lenet5', 32, pretrained=bundle)
    (tmp_path/'empty').mkdir()
    with pytest.raises(HPAError, match='no model in this folder'): make_learner('lenet5', pretrained=tmp_path/'empty')


def test_a_file_of_fastai(make_learner):
    learn = make_learner('resnet10t', 32)
    learn.fit(1, 1e-3)
    file, whole = learn.save('weights', with_opt=False), learn.save('whole')
    again = make_learner('resnet10t', 32, pretrained=file)
    assert torch.equal(again.model[0].conv1[0].weight, learn.model[0].conv1[0].weight) and again.model.known == []
    assert torch.equal(again.model[1][2].running_mean, learn.model[1][2].running_mean)
    with pytest.warns(UserWarning, match='classes have no names, so the last layer begins anew'):
        make_learner('resnet10t', 32, pretrained=file)
    with pytest.raises(HPAError, match='with_opt=False'): make_learner('resnet10t', 32, pretrained=whole)


@pytest.mark.filterwarnings('ignore')
def test_pictures_are_normalised_as_in_the_bundle(make_learner, small_atlas, tmp_path):
    from hpa_fastai.all import HPADataLoaders, hpa_learner
    def loaders(*said):
        return HPADataLoaders.from_csv(small_atlas, size=32, bs=16, cache=False, progress=False,
                                       **dict(zip(['normalize'], said)))
    hpa_learner(loaders('dataset'), 'lenet5', pretrained=False).save_bundle(tmp_path/'b')
    there = load_bundle(tmp_path/'b').settings
    here = hpa_learner(loaders(), 'lenet5', pretrained=tmp_path/'b').dls.settings
    assert here.mean == pytest.approx(there.mean) and there.mean is not None
    with pytest.warns(UserWarning, match='another normalisation'):
        hpa_learner(loaders('minmax'), 'lenet5', pretrained=tmp_path/'b')
    with pytest.warns(UserWarning, match='normalised by each picture, .* another normalisation'):
        assert hpa_learner(loaders('image'), 'lenet5', pretrained=tmp_path/'b').dls.settings.mean is None


@pytest.mark.filterwarnings('ignore')
def test_pictures_that_are_read_in_another_way_than_those_of_the_bundle(make_learner, small_atlas, tmp_path):
    from hpa_fastai.all import HPADataLoaders, ImageReader, hpa_learner
    def loaders(**kwargs):
        return HPADataLoaders.from_csv(small_atlas, size=32, bs=16, cache=False, progress=False,
                                       reader=ImageReader(32, **kwargs))
    hpa_learner(loaders(scale='percentile', pixel_size=.1), 'lenet5', pretrained=False).save_bundle(tmp_path/'b')
    with pytest.warns(UserWarning, match="read with scale='dtype', pixel_size=None, and .* with scale='percentile'"):
        hpa_learner(loaders(), 'lenet5', pretrained=tmp_path/'b')


def test_a_bundle_says_what_it_is_in_a_line(bundle):
    assert repr(load_bundle(bundle)) == 'Bundle(resnet10t, 28 classes, 32 px, not calibrated, on cpu)'
