"""Files in the forms in which models of the atlas were published, with random weights.

The networks are written here from plain PyTorch and torchvision, apart from those of the package, with the names of
the published state dicts. Each function returns the file, or the files, and the network in eval mode: it takes
B×4×S×S (red, green, blue, yellow) and gives probabilities and embeddings.
"""
import math
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

MEAN, STD = (.074598, .050630, .050891, .076287), (.122813, .085745, .129882, .119411)  # of the densenet's training


def draw_norms(network):
    "Statistics for all batch normalisations, so that each of them does something"
    for m in network.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for t, low, high in ((m.weight, .7, 1.3), (m.bias, -.2, .2), (m.running_mean, -.2, .2),
                                 (m.running_var, .6, 1.4)):
                nn.init.uniform_(t, low, high)
    return network.eval()


class Densenet(nn.Module):
    "The densenet for fields of view: pixels from 0 to 1 in, logits and embedding out"
    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.densenet121(weights=None)
        f = self.backbone.features
        f.conv0 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
        self.conv1 = nn.Sequential(f.conv0, f.norm0, f.relu0, f.pool0)
        self.encoder2 = nn.Sequential(f.denseblock1)
        self.encoder3 = nn.Sequential(f.transition1, f.denseblock2)
        self.encoder4 = nn.Sequential(f.transition2, f.denseblock3)
        self.encoder5 = nn.Sequential(f.transition3, f.denseblock4, f.norm5)
        self.bn1, self.fc1, self.bn2 = nn.BatchNorm1d(2048), nn.Linear(2048, 1024), nn.BatchNorm1d(1024)
        self.logit = nn.Linear(1024, 28)

    def forward(self, x):
        x = x.clone()
        for i in range(4): x[:, i] = (x[:, i] - MEAN[i])/STD[i]
        x = F.max_pool2d(self.conv1(x), 2)
        for encoder in (self.encoder2, self.encoder3, self.encoder4, self.encoder5): x = encoder(x)
        x = torch.relu(x)
        x = torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1).flatten(1)
        embedding = self.bn2(torch.relu(self.fc1(self.bn1(x))))
        return self.logit(embedding), embedding


class Attention(nn.Module):
    "Attention to channels, and then to places"
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(2048, 64, 1), nn.Conv2d(64, 2048, 1)
        self.conv_after_concat = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        mean, peak = self.fc1(F.adaptive_avg_pool2d(x, 1)), self.fc1(F.adaptive_max_pool2d(x, 1))
        x = x*torch.sigmoid(self.fc2(torch.relu(mean)) + self.fc2(torch.relu(peak)))  # in the published order of nodes
        return x*torch.sigmoid(self.conv_after_concat(torch.cat([x.mean(1, True), x.max(1, True)[0]], 1)))


class Inception(nn.Module):
    "The inception network for single cells: pixels from 0 to 1 in, logits and embedding out"
    def __init__(self):
        super().__init__()
        b = self.backbone = torchvision.models.inception_v3(weights=None, init_weights=False)
        b.Conv2d_1a_3x3.conv = nn.Conv2d(4, 32, 3, 2, bias=False)
        b.layer0 = nn.Sequential(b.Conv2d_1a_3x3, b.Conv2d_2a_3x3, b.Conv2d_2b_3x3)
        b.layer1 = nn.Sequential(b.Conv2d_3b_1x1, b.Conv2d_4a_3x3)
        b.layer2 = nn.Sequential(b.Mixed_5b, b.Mixed_5c, b.Mixed_5d)
        b.layer3 = nn.Sequential(b.Mixed_6a, b.Mixed_6b, b.Mixed_6c, b.Mixed_6d, b.Mixed_6e)
        b.layer4 = nn.Sequential(b.Mixed_7a, b.Mixed_7b, b.Mixed_7c)
        self.att_module = Attention()
        self.fc_layers = nn.Sequential(nn.BatchNorm1d(4096), nn.Dropout(), nn.Linear(4096, 2048), nn.ReLU(),
                                       nn.BatchNorm1d(2048), nn.Dropout())
        self.logit = nn.Linear(2048, 19)

    def forward(self, x):
        b = self.backbone
        for layer in (b.layer0, b.layer1, b.layer2, b.layer3, b.layer4, self.att_module): x = layer(x)
        x = torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1).flatten(1)
        embedding = self.fc_layers(x)
        return self.logit(embedding), embedding


class ToProbabilities(nn.Module):
    "A network of which the first output becomes probabilities"
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        logits, embedding = self.network(x)
        return torch.sigmoid(logits), embedding


class WrittenOut(ToProbabilities):
    "The same, in the four operations of the published graph of single cells"
    def forward(self, x):
        logits, embedding = self.network(x)
        return 1/(1 + torch.exp(-logits)), embedding


def write_onnx(network, file, size):
    "Write a network as they were written: one picture, of any size, and two outputs"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        torch.onnx.export(network, (torch.rand(1, 4, size, size),), str(file), input_names=['image'],
                          output_names=['classes', 'features'], dynamic_axes=dict(image=[2, 3]), opset_version=11,
                          dynamo=False)
    return Path(file)


def densenet(seed=0):
    "The densenet with random weights"
    torch.manual_seed(seed)
    return draw_norms(Densenet())


def densenet_onnx(path, seed=0):
    "The graph of the densenet, which normalises pixels itself and ends in logits"
    network = densenet(seed)
    return write_onnx(network, path, 64), ToProbabilities(network).eval()


def densenet_checkpoint(path, seed=0):
    "The checkpoint of the densenet: every tensor of its backbone twice, among notes on the training"
    network = densenet(seed)
    notes = dict(best_epoch=12, epoch=13, best_score=np.float64(.57), save_dir='models/fold0')
    torch.save(dict(notes, state_dict=network.state_dict()), path)
    return Path(path), ToProbabilities(network).eval()


def inception(seed=0):
    "The inception network with random weights"
    torch.manual_seed(seed)
    network = Inception()
    for m in network.modules():  # else nothing of the picture comes through so many layers
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
    return draw_norms(network)


def inception_onnx(path, seed=0):
    "The graph of the inception network, which ends in probabilities"
    network = inception(seed)
    return write_onnx(WrittenOut(network).eval(), path, 64), ToProbabilities(network).eval()


def inception_checkpoint(path, seed=0):
    "The checkpoint of the inception network"
    network = inception(seed)
    torch.save(dict(epoch=12., state_dict={f'module.{k}': v for k, v in network.state_dict().items()}), path)
    return Path(path), ToProbabilities(network).eval()


class Layer(nn.Module):
    "A layer of the transformer, by the names of its published weights"
    def __init__(self):
        super().__init__()
        attention = nn.ModuleDict(dict(query=nn.Linear(768, 768), key=nn.Linear(768, 768), value=nn.Linear(768, 768)))
        self.attention = nn.ModuleDict(dict(
            attention=attention, output=nn.ModuleDict(dict(dense=nn.Linear(768, 768)))))
        self.intermediate = nn.ModuleDict(dict(dense=nn.Linear(768, 3072)))
        self.output = nn.ModuleDict(dict(dense=nn.Linear(3072, 768)))
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(768, eps=1e-12), nn.LayerNorm(768, eps=1e-12)

    def forward(self, x):
        n, h = len(x), self.layernorm_before(x)
        q, k, v = (self.attention['attention'][name](h).view(n, -1, 12, 64).transpose(1, 2)
                   for name in ('query', 'key', 'value'))
        weights = (q @ k.transpose(2, 3)/math.sqrt(64)).softmax(-1)
        x = x + self.attention['output']['dense']((weights @ v).transpose(1, 2).flatten(2))
        return x + self.output['dense'](F.gelu(self.intermediate['dense'](self.layernorm_after(x))))


class SubCell(nn.Module):
    "The transformer for single cells: crops in the published order of channels in, embedding out"
    def __init__(self, n_channels):
        super().__init__()
        self.encoder = nn.ModuleDict(dict(
            embeddings=nn.ModuleDict(dict(
                patch_embeddings=nn.ModuleDict(dict(projection=nn.Conv2d(n_channels, 768, 16, 16))))),
            encoder=nn.ModuleDict(dict(layer=nn.ModuleList(Layer() for _ in range(12)))),
            layernorm=nn.LayerNorm(768, eps=1e-12)))
        self.encoder['embeddings'].cls_token = nn.Parameter(torch.zeros(1, 1, 768))
        self.encoder['embeddings'].position_embeddings = nn.Parameter(torch.zeros(1, 785, 768))
        self.pool_model = nn.ModuleDict(dict(
            attention_v=nn.Sequential(nn.Dropout(), nn.Linear(768, 512), nn.Tanh()),
            attention_u=nn.Sequential(nn.Dropout(), nn.Linear(768, 512), nn.GELU()), attention=nn.Linear(512, 2)))

    def forward(self, x):
        e = self.encoder['embeddings']
        patches = e['patch_embeddings']['projection'](x)
        grid = e.position_embeddings[:, 1:].transpose(1, 2).reshape(1, 768, 28, 28)
        if patches.shape[-1] != 28: grid = F.interpolate(grid, patches.shape[2:], mode='bicubic', align_corners=False)
        x = (patches + grid).flatten(2).transpose(1, 2)
        x = torch.cat([(e.cls_token + e.position_embeddings[:, :1]).expand(len(x), -1, -1), x], 1)
        for layer in self.encoder['encoder']['layer']: x = layer(x)
        x = self.encoder['layernorm'](x)
        scores = self.pool_model['attention'](self.pool_model['attention_v'](x)*self.pool_model['attention_u'](x))
        return torch.cat([(scores[..., i].softmax(1)[..., None]*x).sum(1) for i in (0, 1)], 1)


class SubCellWithHeads(nn.Module):
    "The same for pictures of four channels in the order of this package, with the mean of several heads"
    def __init__(self, network, heads, channels):
        super().__init__()
        self.network, self.heads, self.places = network, nn.ModuleList(heads), ['rgby'.index(c) for c in channels]

    def forward(self, x):
        embedding = self.network(x[:, self.places])
        return torch.stack([torch.sigmoid(head(embedding)) for head in self.heads]).mean(0), embedding


def draw(network):
    "Random weights for a network that has none, of a size that keeps signals alive"
    network.to_empty(device='cpu')
    for m in network.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            bound = math.sqrt(3/m.weight[0].numel())
            nn.init.uniform_(m.weight, -bound, bound), nn.init.uniform_(m.bias, -.1, .1)
        if isinstance(m, nn.LayerNorm): nn.init.uniform_(m.weight, .7, 1.3), nn.init.uniform_(m.bias, -.2, .2)
        for name in ('cls_token', 'position_embeddings'):
            if hasattr(m, name): nn.init.uniform_(getattr(m, name), -1, 1)
    return network.eval()


ARCHIVE_NAMES = dict(rybg='all_channels', rbg='MT-DNA-Protein', ybg='ER-DNA-Protein', bg='DNA-Protein')


def subcell_files(folder, n_heads=2, channels='rybg', seed=0, kind='MAE'):
    "The encoder of the transformer and its heads, by their names in the archive"
    torch.manual_seed(seed)
    with torch.device('meta'):
        network = SubCell(len(channels))
        heads = [nn.Sequential(nn.Linear(1536, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 256), nn.ReLU(),
                               nn.Dropout(), nn.Linear(256, 31)) for _ in range(n_heads)]
    draw(network)
    nn.init.uniform_(network.pool_model['attention'].weight, -1, 1)  # so that some tokens stand out
    for head in heads: draw(head)
    name, folder = ARCHIVE_NAMES[channels], Path(folder)
    encoder = f'{name}_MAE-CellS-ProtS-Pool.pth' if kind == 'MAE' else f'{name}_{kind}-ProtS-Pool.pth'
    files = [folder/encoder, *(folder/f'{name}_{kind}_MLP_classifier_seed_{i}.pth' for i in range(n_heads))]
    for module, file in zip([network, *heads], files): torch.save(module.state_dict(), file)
    return files, SubCellWithHeads(network, heads, channels).eval()


@torch.no_grad()
def test_vectors(folder, reference, name):
    "What the archive has to check a converted network with: an input, and what the published graph says to it"
    size = 256 if name == 'hpa-densenet121' else 128
    x = torch.rand(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    classes, features = reference(x)
    if name == 'hpa-densenet121': classes = reference.network(x)[0]  # its graph ends in logits
    folder = Path(folder)
    for part, values in dict(input=x, output_classes=classes, output_features=features).items():
        np.save(folder/f'test_{part}.npy', values.numpy())


test_vectors.__test__ = False  # no test, whatever pytest makes of its name
