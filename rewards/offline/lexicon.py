"""The words that the offline rules know: anatomy, observations, modifiers, negation and uncertainty cues.

Own wording, after the ideas of NegEx (Chapman et al. 2001) and the CheXpert labeler (Irvin et al. 2019): mentions,
then cues with scopes. Phrases are lower case, hyphens read as spaces; a trailing `s` marks nothing, plurals are listed
by `_both`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """What one phrase means.

    Attributes:
        kind: observation, state, normal, anatomy, side, position, severity, change, descriptor, device, statement,
            negation, negation_after, uncertainty, uncertainty_after, suggestion, resolved, break, skip.
        form: the phrase in singular, standard spelling; entities are compared by it.
        conditions: CheXpert conditions that an observation is of.
        group: class of an anatomy (heart, mediastinum, vessels, angle, pleura, lung, bone, other); what a state can be
            said of; the level of a severity; the direction of a change.
    """

    kind: str
    form: str
    conditions: tuple[str, ...] = ()
    group: str = ""


LEXICON: dict[tuple[str, ...], Term] = {}


def _add(kind: str, phrases: str, conditions: tuple[str, ...] = (), group: str = "") -> None:
    """Each line of `phrases` is one entry: variants separated by `|`, the first is the standard form."""
    for line in phrases.strip().splitlines():
        variants = [variant.strip() for variant in line.split("|")]
        for variant in variants:
            LEXICON[tuple(variant.split())] = Term(kind, variants[0], conditions, group)


# --- Observations of the CheXpert conditions -------------------------------------------------------------------------
_add("observation", "cardiomegaly | cardiac enlargement | enlargement of the heart", ("Cardiomegaly",))
_add(
    "observation",
    "mediastinal widening | widening of the mediastinum | widened mediastinum | cardiomediastinal enlargement",
    ("Enlarged Cardiomediastinum",),
)
_add(
    "observation",
    """
    opacity | opacities | opacification | opacifications | opacified
    airspace disease | air space disease
    airspace opacity | air space opacity | airspace opacities | air space opacities
    infiltrate | infiltrates | infiltration
    increased density | increased densities | hazy density
    increased interstitial markings | increased lung markings | prominent interstitial markings | coarse interstitial markings
    interstitial prominence | prominent interstitium
    scarring | scar | scars
    reticulation | reticular pattern
    peribronchial thickening | bronchial wall thickening | peribronchial cuffing
    """,
    ("Lung Opacity",),
)
_add(
    "observation",
    """
    nodule | nodules
    nodular opacity | nodular opacities | nodular density | nodular densities | rounded opacity | rounded density
    mass | masses
    lung lesion | lung lesions | pulmonary lesion | cavitary lesion | cavitary lesions
    lesion | lesions
    neoplasm | malignancy | carcinoma | tumor | metastasis | metastases
    """,
    ("Lung Lesion",),
)
_add(
    "observation",
    """
    edema | oedema
    pulmonary edema
    vascular congestion | pulmonary vascular congestion | pulmonary venous congestion | venous congestion | pulmonary congestion | central congestion
    heart failure | congestive heart failure | congestive failure | chf | overt failure | cardiac failure | decompensation
    vascular engorgement | vascular redistribution | cephalization | vascular prominence
    pulmonary venous hypertension | venous hypertension
    fluid overload | volume overload
    increased vascularity | increased pulmonary vascularity | increased vascular markings | increased pulmonary vascular markings
    kerley b lines | kerley lines | septal lines
    """,
    ("Edema",),
)
_add(
    "observation",
    "consolidation | consolidations | consolidated | consolidative opacity | consolidative opacities | consolidative change",
    ("Consolidation",),
)
_add(
    "observation",
    "pneumonia | pneumonias\ninfection | infectious process | infectious infiltrate\nbronchopneumonia",
    ("Pneumonia",),
)
_add(
    "observation",
    "atelectasis | atelectases | atelectatic change | atelectatic changes | atelectatic\ncollapse | collapsed | volume loss",
    ("Atelectasis",),
)
_add("observation", "pneumothorax | pneumothoraces | pneumothoraxes\nhydropneumothorax", ("Pneumothorax",))
_add(
    "observation",
    "effusion | effusions | pleural fluid | fluid collection\nhemothorax | haemothorax",
    ("Pleural Effusion",),
)
_add(
    "observation",
    """
    pleural thickening | thickening of the pleura | pleural scarring | pleural parenchymal scarring | apical cap
    pleural plaque | pleural plaques | fibrothorax | pleural calcification | pleural calcifications
    """,
    ("Pleural Other",),
)
_add(
    "observation",
    "fracture | fractures | fractured\ncompression deformity | compression deformities | rib deformity | rib deformities",
    ("Fracture",),
)
_add(
    "device",
    """
    support device | support devices | device | devices | medical device | hardware | apparatus
    line | lines | central line | central lines | venous line | central venous line | monitoring lines
    catheter | catheters | central venous catheter | venous catheter
    picc | picc line | picc lines | picc catheter
    port a cath | port | chest port | mediport | portacath | port catheter
    tube | tubes
    endotracheal tube | endotracheal tubes | et tube | ett
    tracheostomy tube | tracheostomy | tracheostomy cannula
    nasogastric tube | ng tube | enteric tube | feeding tube | orogastric tube | dobbhoff tube | gastrostomy tube
    chest tube | chest tubes | pleural drain | pigtail catheter | drain | drains
    pacemaker | pacemakers | pacer | cardiac pacemaker | pacing device
    defibrillator | icd | aicd
    lead | leads | pacemaker lead | pacemaker leads | pacer leads | pacing leads
    sternotomy wire | sternotomy wires | median sternotomy wires | wire | wires
    clip | clips | surgical clips | surgical clip
    stent | stents
    valve replacement | prosthetic valve | valve prosthesis | mechanical valve
    prosthesis | arthroplasty | screw | screws | plate | plates | spinal hardware | rod | rods
    swan ganz catheter | swan ganz
    balloon pump
    """,
    ("Support Devices",),
)

# --- Observations outside the 14 conditions --------------------------------------------------------------------------
_add(
    "observation",
    """
    emphysema | emphysematous change | emphysematous changes | copd | hyperinflation | hyperexpansion | hyperinflated | hyperexpanded
    low lung volumes | low volumes | decreased lung volumes | hypoinflation | low lung volume | hypoventilation | small lung volumes
    granuloma | granulomas
    granulomatous disease
    aspiration
    calcification | calcifications
    degenerative change | degenerative changes | spondylosis | osteophytes | osteopenia
    scoliosis | dextroscoliosis | levoscoliosis | kyphosis
    hernia | hiatal hernia
    free air | pneumoperitoneum | free intraperitoneal air
    subcutaneous emphysema
    pneumomediastinum
    adenopathy | lymphadenopathy
    tortuous | tortuosity | ectatic | ectasia | unfolded
    atherosclerosis | atherosclerotic
    interstitial lung disease | fibrosis | interstitial disease
    bronchiectasis
    crowding | bronchovascular crowding
    elevation | elevated
    mediastinal shift
    """,
)

# --- States: abnormal words whose condition depends on the anatomy that they are said of -----------------------------
_add("state", "enlarged | enlargement | enlarging heart | dilated | oversized", group="heart mediastinum vessels")
_add("state", "large in size | enlarged in size", group="heart mediastinum")
_add("state", "widened | widening | wide", group="mediastinum")
_add("state", "prominent | prominence | distended | increased caliber", group="heart mediastinum vessels")
_add(
    "state",
    "congested | congestion | engorged | engorgement | indistinct | indistinctness | ill defined vessels",
    group="vessels",
)
_add("state", "blunted | blunting | blunt | obscured", group="angle")
_add("state", "thickened | thickening", group="pleura")
_add("state", "borderline | borderline enlarged | borderline in size | borderline size", group="heart mediastinum")
# The condition that a state means for each class of anatomy.
STATE_CONDITIONS = {
    "heart": "Cardiomegaly",
    "mediastinum": "Enlarged Cardiomediastinum",
    "vessels": "Edema",
    "angle": "Pleural Effusion",
    "pleura": "Pleural Other",
}
# The condition that an anatomy called normal (clear, sharp, intact) is free of.
NORMAL_CONDITIONS = STATE_CONDITIONS | {"pleura": "Pleural Effusion", "lung": "Lung Opacity", "bone": "Fracture"}
_add(
    "normal",
    """
    normal | unremarkable | within normal limits | normal in size | of normal size | normal size | not enlarged | not widened | not prominent | not dilated
    upper limits of normal | top normal | top normal in size | upper limit of normal | high normal
    clear | well aerated | normally aerated | well expanded and clear
    sharp | preserved | well defined | not blunted
    intact
    """,
)
# "No acute cardiopulmonary process": the statement that there is nothing to report.
_add(
    "statement",
    """
    abnormality | abnormalities | process | disease | finding | findings | pathology | acute process | acute disease
    cardiopulmonary process | cardiopulmonary abnormality | cardiopulmonary disease | intrathoracic process | abnormal
    """,
)

# --- Anatomy ---------------------------------------------------------------------------------------------------------
_add(
    "anatomy",
    "heart | cardiac silhouette | cardiac shadow | cardiac contour | cardiac contours | cardiac size | heart size | cardiac | heart silhouette | cardiac silhouettes",
    group="heart",
)
_add(
    "anatomy",
    """
    mediastinum | mediastinal | mediastinal contour | mediastinal contours | mediastinal silhouette | superior mediastinum | mediastinal silhouettes
    cardiomediastinum | cardiomediastinal silhouette | cardiomediastinal silhouettes | cardiomediastinal contour | cardiomediastinal contours | cardio mediastinal silhouette | cardiomediastinal
    """,
    group="mediastinum",
)
_add(
    "anatomy",
    "pulmonary vasculature | pulmonary vascularity | vasculature | vascularity | pulmonary vessels | pulmonary vascular markings | vascular markings | pulmonary vascular | pulmonary veins | bronchovascular markings",
    group="vessels",
)
_add(
    "anatomy",
    "costophrenic angle | costophrenic angles | costophrenic sulcus | costophrenic sulci | costophrenic recess | cp angle | cp angles | costophrenic",
    group="angle",
)
_add(
    "anatomy", "pleura | pleural | pleural space | pleural spaces | pleural surface | pleural surfaces", group="pleura"
)
_add(
    "anatomy",
    """
    lung | lungs | pulmonary | lung field | lung fields | hemithorax | parenchyma | parenchymal
    lobe | lobes
    base | bases | lung base | lung bases | basilar | basal
    apex | apices | apical | lung apex | lung apices
    zone | zones | lung zone | lung zones | midlung | lingula
    perihilar
    retrocardiac
    """,
    group="lung",
)
_add(
    "anatomy",
    """
    bone | bones | osseous | osseous structure | osseous structures | bony structures | bony | skeletal structures | bony thorax | skeleton
    rib | ribs
    clavicle | clavicles | sternum | humerus | scapula
    vertebra | vertebrae | vertebral body | vertebral bodies | spine | thoracic spine
    """,
    group="bone",
)
_add(
    "anatomy",
    """
    hilum | hila | hilar
    aorta | aortic | thoracic aorta | aortic knob | aortic arch
    trachea | tracheal
    diaphragm | hemidiaphragm | hemidiaphragms | hemidiaphragmatic
    svc | superior vena cava | cavoatrial junction
    carina
    right atrium | right ventricle
    stomach | abdomen | upper abdomen
    neck | shoulder
    chest wall | soft tissues
    jugular | subclavian
    chest | thorax
    """,
    group="other",
)
_add("side", "right | rightward | right sided", group="right")
_add("side", "left | leftward | left sided", group="left")
_add("side", "bilateral | bilaterally | both | bibasilar | biapical | bibasal", group="bilateral")
_add(
    "position",
    "upper\nlower\nmiddle | mid\nmedial\nlateral\nposterior\nanterior\nsuperior\ninferior\ncentral\nperipheral",
)

# --- Modifiers -------------------------------------------------------------------------------------------------------
_add(
    "severity",
    "small | tiny | trace | minimal | minimally | mild | mildly | slight | slightly | subtle | faint",
    group="mild",
)
_add("severity", "moderate | moderately | medium sized | medium | moderate sized | moderate to large", group="moderate")
_add(
    "severity",
    "large | severe | severely | marked | markedly | extensive | massive | substantial | dense",
    group="severe",
)
_add(
    "change",
    """
    unchanged | stable | similar | persistent | persists | persisting | again | no change | without change | constant | redemonstrated | grossly unchanged
    no significant change | no interval change | no significant interval change | not changed | not significantly changed | without significant change | without interval change | no substantial change | no relevant change
    """,
    group="unchanged",
)
_add(
    "change",
    "increased | increasing | worsened | worsening | worse | larger | progressed | progression | progressive | enlarging | more prominent | grown | increase | has grown | bigger",
    group="worse",
)
_add(
    "change",
    "decreased | decreasing | improved | improving | improvement | smaller | resolving | less | decrease | diminished | regressed | partially resolved | partial resolution of | partial clearing of | shrunk",
    group="improved",
)
_add(
    "change",
    "new | newly | newly developed | interval development of | interval appearance of | has developed | have developed | developing",
    group="new",
)
_add(
    "resolved",
    "resolved | has resolved | have resolved | resolution of | interval resolution of | cleared | has cleared | have cleared | completely resolved | disappeared | removed | removal of | interval removal of",
    group="resolved",
)
_add(
    "descriptor",
    """
    focal\npatchy\nlinear\nstreaky\nhazy\ndiffuse\ninterstitial\nalveolar\nmultifocal\nill defined\nconfluent\nnodular
    calcified\nhealed\nold\nchronic\nacute\nsubsegmental\nplatelike | plate like | bandlike | band like\nreticular\nloculated\nlayering\ndisplaced\nnondisplaced\nround | rounded
    airspace | air space
    """,
)

# --- Cues ------------------------------------------------------------------------------------------------------------
_add(
    "negation",
    """
    no | not | without | no evidence of | without evidence of | negative for | free of | clear of | absence of | no sign of | no signs of | lack of | never | neither | nor
    rather than | no longer | has no | resolved without
    """,
)
_add(
    "negation_after",
    """
    not seen | not identified | not present | not visualized | not visualised | not appreciated | not evident | not demonstrated | not noted | not observed | not detected | not visible | not found
    is absent | are absent | absent | ruled out | is excluded | are excluded | no longer seen | no longer present | no longer visualized | no longer visible | no longer evident | no longer identified | not clearly seen | not apparent
    """,
)
_add(
    "uncertainty",
    """
    possible | possibly | probable | probably | questionable | question of | suspected | suspicious for | suspicion of | concerning for | concern for | worrisome for | equivocal
    may be | could be | might be | may | could | might | cannot exclude | can not exclude | cannot rule out | not excluded | rule out | evaluate for | correlate for | correlation for
    versus | vs | presumably | presumed | potential | difficult to exclude | not exclude | if
    """,
)
_add(
    "uncertainty_after",
    "cannot be excluded | can not be excluded | not excluded | is not excluded | are not excluded | cannot be ruled out | is possible | are possible | is suspected | are suspected | is questioned | not entirely excluded",
)
# These link what stands before (an observation) to what stands after (what it suggests).
_add(
    "suggestion",
    "suggestive of | suggesting | suggests | suggest | concerning for | worrisome for | suspicious for | may represent | may reflect | could represent | could reflect | might represent | might reflect | may be due to | may indicate | possibly representing | possibly reflecting | favored to represent | raising concern for | raises concern for",
    group="uncertain",
)
_add(
    "suggestion",
    "consistent with | compatible with | representing | reflecting | likely representing | likely reflecting | likely represents | likely reflects | most likely | likely | in keeping with | due to | represents | reflects | indicating | indicative of | likely due to | likely related to",
    group="certain",
)
_add(
    "break",
    "but | however | although | though | except | except for | aside from | other than | apart from | otherwise | while | whereas | yet",
)
_add(
    "skip",
    "chest radiograph | chest x ray | end plate | end plates | in line with | history of | status post | line up | prior study | previous study | prior exam | to resolution | follow up to resolution | recommended | large bore | follow up | free text",
)

LONGEST_PHRASE = max(len(phrase) for phrase in LEXICON)
