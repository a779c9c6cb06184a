"""Synthetic Chinese job ads whose competences are known by construction. Nothing here is taken from a real ad.

A sentence is made of clauses, a clause of a trigger, a core and a tail; the core is written together with its spans::

    负责[编制年度预算]S、[核对财务数据]S；熟悉[劳动合同法]K，具备良好的[沟通能力]T。
    responsible for [drawing up annual budgets], [checking financial data]; knows [labour contract law], ...

Types are the paper's four: L language, S skill (an action), K knowledge, T transversal. The same words are marked or
not by context: a tool is K after "know", part of an S after "use", and nothing in a sentence about the company's own
products; phrases that look like a competence and are none are recorded as ``near``. Four sources differ in what they
ask (:data:`SOURCES`), and wording changes with the year.

Idealised: one author, one rule for each case, a small vocabulary (:func:`lexicon`), clauses from fixed families.
Every record says ``synthetic``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

TYPES = ("K", "L", "S", "T")
YEARS = tuple(range(2014, 2026))

def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# fmt: off
# (verbs, objects): every verb of a class goes with every object of it
ACTIONS: tuple[tuple[str, str], ...] = (
    ("编写 撰写 起草 修订", "技术文档 测试用例 项目计划 招标文件 操作手册 需求说明书 培训教材 会议纪要 宣传文案 "
     "应急预案 验收报告 调研报告 工艺文件 产品说明"),
    ("编制 审核 汇总", "年度预算 财务报表 成本明细 工程量清单 纳税申报表 采购计划 资金计划 生产报表"),
    ("分析 整理 统计 核对", "销售数据 用户行为 库存数据 财务数据 市场行情 实验数据 客户反馈 生产日志 考勤记录 病历资料 "
     "物流单据 风险指标"),
    ("开发 设计 搭建 优化 重构", "推荐算法 数据仓库 后端接口 移动应用 支付系统 报表平台 嵌入式驱动 检索服务 监控系统 "
     "自动化脚本 网站前端 数据管道 图像识别模型 语音交互功能"),
    ("维护 检修 巡检 调试 安装", "服务器集群 数控机床 配电设备 空调机组 生产线 网络设备 消防设施 医疗器械 仓储货架 "
     "电梯 传感器 污水处理设备"),
    ("组织 策划 主持", "员工培训 校园招聘 线下活动 安全演练 部门例会 家长会 学术会议 促销活动 技术沙龙 团队建设"),
    ("管理 跟进 协调 监督", "供应商合同 项目进度 施工现场 货物出入库 采购订单 生产计划 档案资料 班级事务 门店陈列 "
     "外包团队 库存盘点 工程质量 客户关系 回款进度"),
    ("接待 回访 引导", "来访客户 老年住户 住院患者 会员用户 参观人员 投诉业主"),
    ("排查 处理 修复", "网络故障 安全隐患 程序缺陷 设备异常 账务差错 突发事件 客户投诉 系统漏洞"),
    ("训练 部署 微调", "分类模型 对话模型 预测模型 排序模型"),
    ("讲授 辅导", "专业课程 毕业设计 实训项目 小学数学 编程入门课"),
    ("制作 剪辑 拍摄", "短视频 宣传海报 产品样品 动画素材 三维效果图 教学课件"),
    ("采购 验收 配送", "办公用品 生鲜商品 原材料 医用耗材 仪器备件"),
)
TOOLS = _words(
    "Python Java SQL SPSS Excel AutoCAD Linux MySQL Spark TensorFlow Photoshop SolidWorks MATLAB SAP Git Docker "
    "C++ C# Tableau Hadoop Redis Kafka Revit Premiere Axure CAD PLC Oracle Vue React Android Scala"
)
# Tools with a time: (name, first year, peak, half-life in years)
DATED = (("Flash", 2000, 2013, 2.0), ("Hadoop平台", 2012, 2017, 3.0), ("PyTorch", 2018, 2025, 9.0),
         ("LangChain", 2023, 2025, 9.0), ("大模型接口", 2023, 2025, 9.0), ("小程序框架", 2017, 2021, 4.0),
         ("Struts", 2000, 2014, 2.0), ("低代码平台", 2020, 2025, 9.0))
MAJORS = _words(
    "计算机科学 软件工程 统计学 应用数学 电子信息 自动化 机械工程 土木工程 工程管理 会计学 金融学 市场营销 "
    "工商管理 物流管理 护理学 临床医学 药学 法学 汉语言文学 教育学 心理学 行政管理 食品科学 环境工程 化学工程 "
    "材料科学 通信工程 电气工程 人力资源管理 新闻传播学 视觉传达设计 服装设计 酒店管理 旅游管理 审计学 公共管理 "
    "社会工作 测绘工程 车辆工程 园林学"
)
LAWS = _words(
    "劳动合同法 公司法 招标投标法 安全生产法 税法 广告法 食品安全法 药品管理法 教师法 预算法 审计法 网络安全法 "
    "个人信息保护法 建筑法 环境保护法 消费者权益保护法 事业单位人事管理条例 会计准则 政府采购制度 公文处理规范"
)
STANDARDS = _words(
    "ISO9001 ISO/IEC20000 ISO14001 GB/T19001 GMP IATF16949 GSP HACCP IEC61508 GB50300"
)
CERTIFICATES = _words(
    "注册会计师证书 教师资格证 护士执业证 法律职业资格证书 一级建造师证 二级建造师证 电工证 驾驶证 健康证 导游证 "
    "证券从业资格证 初级会计职称 中级会计职称 执业药师证 焊工证 特种设备作业证 PMP证书 软考中级证书 "
    "社会工作者证书 心理咨询师证"
)
FIELDS = _words(
    "数据结构 操作系统 计算机网络 机器学习 深度学习 统计推断 数字电路 流体力学 材料力学 供应链 成本核算 品牌营销 "
    "消费心理 人体解剖 药理 结构力学 控制工程 信号处理 密码学 分布式系统 金融工程 宏观经济 风险控制 税务筹划 "
    "组织行为 课程设计 儿童心理 食品营养 工业设计 城市规划 环境监测 仓储物流 跨境电商 直播电商 用户体验 信息检索 "
    "图论 运筹学 质量管理 项目管理 精益生产 人力资源 公共政策 档案学 展览策划 色彩搭配 建筑节能 给排水 暖通空调 "
    "半导体"
)
FIELD_TAILS = ("原理", "基础知识", "理论", "行业规范", "方法")
DEGREES = _words(
    "大专 本科 硕士 博士"
)
LANGUAGES = _words(
    "英语 日语 韩语 法语 德语 俄语 西班牙语 粤语"
)
LANGUAGE_TAILS = _words(
    "听说能力 口语 读写能力 书面表达 四级 六级 专业八级"
)
MANDARIN = _words(
    "普通话 普通话一级乙等 普通话二级甲等 普通话二级乙等 日语N1 日语N2 雅思6.5"
)
TRAITS = _words(
    "沟通能力 学习能力 抗压能力 执行力 责任心 团队合作精神 团队意识 服务意识 逻辑思维 创新意识 亲和力 应变能力 "
    "组织协调能力 语言表达能力 时间管理能力 自我驱动力 同理心 职业道德 敬业精神 保密意识 大局观 领导力 洞察力 "
    "好奇心 耐心 细心 主动性 独立思考能力 问题解决能力 批判性思维 成本意识 质量意识 安全意识 结果导向 客户导向 "
    "谈判能力 跨文化沟通能力 自律性 原则性 进取心"
)
TRAIT_VERBS = _words(
    "吃苦耐劳 认真负责 换位思考 条理清晰 诚实守信 积极主动 乐观开朗 严谨细致 爱岗敬业 善于沟通 勇于担当 踏实肯干 "
    "乐于分享 思维敏捷 遵纪守法 勤于思考 善于倾听 敢于创新 廉洁自律 性格稳重"
)

DOING = ("负责", "参与", "独立", "协助", "能够独立", "主要负责", "承担")
KNOWING = ("熟悉", "掌握", "了解", "精通", "具有扎实的", "系统学习过", "熟知")
USING = ("使用", "运用", "用", "通过")
DEGREE_WORDS = ("熟练", "良好的", "较强的", "优秀的", "一定的", "出色的", "较好地", "高效地", "积极")
SCENES = ("线上", "线下", "跨部门", "日常", "在项目组内")
TAILS = ("等工作", "", "", "者优先", "等", "")
PERKS = _words(
    "五险一金 带薪年假 节日福利 免费班车 员工宿舍 定期体检 餐补 弹性工作制 年终奖金 股票期权"
)
COMPANY = ("本公司", "我们", "公司", "本集团")
CLAIMS = ("为客户提供", "的平台帮助企业", "长期致力于", "的主营业务是", "的产品可以")
NOTICES = (
    "应聘者须如实填写报名表", "报名时间以公告为准", "逾期不予受理", "笔试成绩在官网公布", "资格审查贯穿招聘全过程",
    "体检标准参照有关规定执行", "聘用人员试用期为六个月", "本公告由人事部门负责解释", "咨询电话见附件",
    "考生凭准考证参加考试",
)
PAY = ("月薪8000至12000元", "底薪加提成", "每周双休", "工作时间为九点到六点", "工作地点可协商", "年龄35周岁以下",
       "薪资面议", "入职即缴五险一金", "提供免费工作餐", "3年以上工作经验", "应届毕业生亦可", "身体健康")
TALK = (
    "我们为每位新人配备一对一的导师", "完善的晋升通道助力个人成长", "试用期结束后按考核结果定薪",
    "公司坐落于科技园区交通十分便利",
    "入职首月安排集中学习与轮岗", "团队氛围轻松同事大多很年轻", "每年组织两次集体出游和年会",
    "优秀者可提前转正并获得奖励",
)
RESULTS = ("月度销售额提升20%", "按时达成年度目标", "客户满意度保持在95%以上", "故障率低于1%", "对部门业绩负责")

# Relative weights of the families of clauses by source; see _FAMILIES below. Set once so that the three splits of the
# draft come out with its mean length, spans per sentence and mix of types (within 5% on the seeds of the chapter).
SOURCES: Mapping[str, Mapping[str, float]] = {
    "tech": {"single": .205, "list": .163, "shared": .070, "know": .205, "use": .078, "tool": .072, "trait": .135,
             "language": .004, "mixed": .001, "degree": .045, "nothing": .080},
    "graduate": {"single": .126, "list": .052, "shared": .038, "know": .031, "use": .017, "tool": .009, "trait": .142,
                 "language": .008, "mixed": .001, "degree": .022, "nothing": .620},
    "hosted": {"single": .085, "list": .042, "shared": .025, "know": .050, "use": .018, "tool": .015, "trait": .075,
               "language": .001, "mixed": .001, "degree": .015, "nothing": .960},
    "public": {"single": .055, "list": .020, "shared": .010, "know": .030, "use": .004, "tool": .004, "trait": .040,
               "language": .001, "mixed": .000, "degree": .035, "nothing": 1.45},
}
CLAUSES = {"tech": 2.69, "graduate": 2.68, "hosted": 4.5, "public": 4.9}
"""Mean number of clauses in a sentence."""

IMBALANCED = {"train": {"tech": .39, "graduate": .61}, "dev": {"tech": 1.0},
              "test": {"tech": .54, "hosted": .18, "public": .28}}
"""Which sources the sentences of a split come from, as in the draft of the paper."""

STRATIFIED = {split: {"tech": .40, "graduate": .38, "hosted": .12, "public": .10} for split in ("train", "dev", "test")}

GLOSSARY = {
    "负责": "be responsible for", "熟悉": "be familiar with", "编制年度预算": "draw up the annual budget",
    "核对财务数据": "check financial data", "排查网络故障": "trace network faults", "劳动合同法": "labour contract law",
    "沟通能力": "communication skills", "抗压能力": "resilience", "普通话二级甲等": "Mandarin, level 2A",
    "编写技术文档和测试用例": "write technical documents and test cases", "五险一金": "statutory social insurance",
    "换位思考": "see things as others do", "岗位职责": "duties", "任职要求": "requirements",
}
"""Terms of the chapter in English."""
# fmt: on


class Entry(NamedTuple):
    """A competence: ``id`` such as ``zh:S.017`` (our own, no link to ESCO), type, words, and when it is asked for."""

    id: str
    type: str
    head: str
    kind: str
    first_year: int = 2000
    peak: int = 2025
    half_life: float = math.inf

    def weight(self, year: int) -> float:
        """How likely it is in an ad of ``year``: logistic entry, exponential decay after its peak."""
        fading = 0.0 if math.isinf(self.half_life) else max(0, year - self.peak) / self.half_life
        return 2.0**-fading / (1 + math.exp(-(year - self.first_year) / 1.5 - 1e-9))


@functools.cache
def lexicon() -> tuple[Entry, ...]:
    """Every competence of the world."""
    found: list[Entry] = []

    def add(kind_of: str, kind: str, words: Sequence[str], **when: float) -> None:
        start = sum(entry.type == kind_of for entry in found)
        found.extend(Entry(f"zh:{kind_of}.{start + i:03d}", kind_of, w, kind, **when) for i, w in enumerate(words))

    for verbs, objects in ACTIONS:
        add("S", "action", [verb + thing for verb in verbs.split() for thing in objects.split()])
    add("K", "tool", TOOLS)
    for name, first, peak, half_life in DATED:
        add("K", "tool", [name], first_year=first, peak=peak, half_life=half_life)
    add("K", "major", MAJORS)
    add("K", "law", [*LAWS, *STANDARDS])
    add("K", "certificate", CERTIFICATES)
    add("K", "field", [field + tail for field in FIELDS for tail in FIELD_TAILS])
    add("K", "degree", DEGREES)
    add("L", "language", [a + b for a in LANGUAGES for b in LANGUAGE_TAILS] + [*MANDARIN])
    add("T", "trait", TRAITS)
    add("T", "trait verb", TRAIT_VERBS)
    return tuple(found)


class Mark(NamedTuple):
    """Code points ``start`` to ``end`` (exclusive) of a text, their type, and the entry they name (or nothing)."""

    start: int
    end: int
    type: str
    entry: str = ""


class Advert(NamedTuple):
    """A sentence of a synthetic ad.

    ``near`` are phrases that look like a competence and are none here; ``clauses`` are (start, end, family, where the
    core begins); ``tags`` name the phenomena in it.
    """

    id: str
    posting: str
    order: int
    source: str
    year: int
    text: str
    spans: tuple[Mark, ...]
    near: tuple[Mark, ...]
    clauses: tuple[tuple[int, int, str, int], ...]
    tags: tuple[str, ...]
    synthetic: bool = True


class _Writer:
    """A text under construction with its marks."""

    def __init__(self) -> None:
        self.text, self.spans, self.near, self.clauses, self.tags = "", [], [], [], []

    def say(self, words: str) -> _Writer:
        self.text += words
        return self

    def mark(self, words: str, kind: str, entry: str = "", *, gold: bool = True) -> _Writer:
        mark = Mark(len(self.text), len(self.text) + len(words), kind, entry)
        (self.spans if gold else self.near).append(mark)
        self.text += words
        return self


class _World:
    """Draws words for one posting."""

    def __init__(self, rng: np.random.Generator, year: int) -> None:
        self.rng, self.year = rng, year

    def pick(self, words: Sequence[str]) -> str:
        return words[int(self.rng.integers(len(words)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def entry(self, *kinds: str) -> Entry:
        pool, total = _pool(kinds, self.year)
        return pool[int(np.searchsorted(total, self.rng.random() * total[-1], side="right"))]

    def tool(self) -> Entry:
        return self.entry("tool")


@functools.cache
def _pool(kinds: tuple[str, ...], year: int) -> tuple[list[Entry], np.ndarray]:
    pool = [entry for entry in lexicon() if entry.kind in kinds]
    # A power law over a fixed shuffle: some competences are everywhere, many are rare.
    order = np.random.default_rng(len(pool)).permutation(len(pool))
    weights = [entry.weight(year) / (1 + order[i]) ** 0.5 for i, entry in enumerate(pool)]
    return pool, np.cumsum(weights)


# Families of clauses. Each writes into ``w`` and returns where its core began.


def _doing(w: _Writer, draw: _World) -> int:
    w.say(draw.pick(DOING))
    if draw.chance(0.2):
        w.say(draw.pick(SCENES))
        w.tags.append("scene")
    elif draw.chance(0.15):
        w.say(draw.pick(("高效地", "较好地完成", "积极")))
        w.tags.append("degree word")
    return len(w.text)


def _single(w: _Writer, draw: _World) -> int:
    core = _doing(w, draw) if draw.chance(0.85) else len(w.text)
    act = draw.entry("action")
    w.mark(act.head, "S", act.id).say(draw.pick(TAILS))
    return core


def _list(w: _Writer, draw: _World) -> int:
    core = _doing(w, draw)
    n = 2 + int(draw.chance(0.3))
    for i in range(n):
        w.say("" if i == 0 else draw.pick(("和", "及", "、")) if i == n - 1 else "、")
        act = draw.entry("action")
        w.mark(act.head, "S", act.id)
    w.say(draw.pick(TAILS))
    w.tags.append("list")
    return core


def _shared(w: _Writer, draw: _World) -> int:
    core = _doing(w, draw)
    verbs, objects = ACTIONS[int(draw.rng.integers(len(ACTIONS)))]
    things = draw.rng.permutation(objects.split())[:2].tolist()
    w.mark(f"{draw.pick(verbs.split())}{things[0]}{draw.pick(('和', '及', '、'))}{things[1]}", "S")
    w.tags.append("shared verb")
    return core


def _know(w: _Writer, draw: _World) -> int:
    w.say(draw.pick(KNOWING))
    core = len(w.text)
    for i in range(1 + int(draw.chance(0.4)) + int(draw.chance(0.15))):
        w.say(draw.pick(("、", "和")) if i else "")
        known = draw.entry("law", "field") if draw.chance(0.75) else draw.entry("major")
        w.mark(known.head, "K", known.id)
    if draw.chance(0.2):
        w.say("等相关知识")
    return core


def _use(w: _Writer, draw: _World) -> int:
    w.say(draw.pick(("能", "可", "熟练", "能够熟练")))
    core = len(w.text)
    tool, act = draw.tool(), draw.entry("action")
    w.mark(draw.pick(USING) + tool.head + act.head, "S", act.id)
    w.near.append(Mark(core, len(w.text) - len(act.head), "K", tool.id))
    w.tags += ["tool in use", "nested"]
    return core


def _tool(w: _Writer, draw: _World) -> int:
    w.say(draw.pick(KNOWING[:4]))
    core = len(w.text)
    for i in range(1 + int(draw.chance(0.5))):
        tool = draw.tool()
        w.say("、" if i else "").mark(tool.head, "K", tool.id)
        if draw.chance(0.12):
            w.say(draw.pick(("3.8", "11", "2.0")))
            w.tags.append("version")
    w.tags.append("tool known")
    return core


def _trait(w: _Writer, draw: _World) -> int:
    noun = draw.chance(0.65)
    w.say(
        draw.pick(("具备", "有", "具有", "需要")) + draw.pick(DEGREE_WORDS[1:6])
        if noun
        else draw.pick(("", "工作", "为人"))
    )
    core = len(w.text)
    for i in range(1 + int(draw.chance(0.35)) + int(draw.chance(0.12))):
        trait = draw.entry("trait" if noun else "trait verb")
        w.say(("、" if noun else "，") if i else "").mark(trait.head, "T", trait.id)
    return core


def _language(w: _Writer, draw: _World) -> int:
    core, known = len(w.text), draw.entry("language")
    w.mark(known.head, "L", known.id).say(draw.pick(("良好", "流利", "以上", "优秀者优先")))
    return core


def _mixed(w: _Writer, draw: _World) -> int:
    w.say("能用")
    core, act = len(w.text), draw.entry("action")
    w.mark(draw.pick(LANGUAGES), "L").mark(act.head, "S", act.id)
    w.tags.append("L and S")
    return core


def _degree(w: _Writer, draw: _World) -> int:
    core = len(w.text)
    if draw.chance(0.35):
        paper = draw.entry("certificate")
        w.say(draw.pick(("持有", "具有", "取得"))).mark(paper.head, "K", paper.id).say(draw.pick(("", "者优先")))
        return core
    w.mark(draw.pick(DEGREES), "K").say("及以上学历，")
    for i in range(1 + int(draw.chance(0.4))):
        major = draw.entry("major")
        w.say("、" if i else "").mark(major.head, "K", major.id)
    w.say("等相关专业")
    return core


def _nothing(w: _Writer, draw: _World) -> int:
    core, kind = len(w.text), draw.rng.random()
    w.tags.append("nothing")
    if kind < 0.30:
        act = draw.entry("action")
        w.say(draw.pick(COMPANY) + draw.pick(CLAIMS)).mark(act.head, "S", act.id, gold=False).say("服务")
        w.tags.append("company")
    elif kind < 0.42:
        tool = draw.tool()
        w.say("入职后提供").mark(tool.head, "K", tool.id, gold=False).say("培训")
        w.tags.append("company")
    elif kind < 0.52:
        trait = draw.entry("trait")
        w.say("我们的价值观是").mark(trait.head, "T", trait.id, gold=False)
        w.tags.append("company")
    elif kind < 0.60:
        w.say(draw.pick(RESULTS))
        w.tags.append("result")
    elif kind < 0.80:
        w.say(draw.pick(TALK))
    elif kind < 0.90:
        w.say("提供" + "、".join(draw.rng.permutation(PERKS)[:2].tolist()))
    else:
        w.say(draw.pick(PAY))
    return core


_FAMILIES = {
    "single": _single, "list": _list, "shared": _shared, "know": _know, "use": _use, "tool": _tool, "trait": _trait,
    "language": _language, "mixed": _mixed, "degree": _degree, "nothing": _nothing,
}  # fmt: skip


def sentence(rng: np.random.Generator, source: str, year: int, *, empty: float | None = None) -> _Writer:
    """One sentence of a source: clauses joined by commas, with the noise of that source.

    Args:
        empty: share of clauses without a span; None takes the source's.
    """
    draw, w = _World(rng, year), _Writer()
    shares = dict(SOURCES[source])
    if empty is not None:
        rest = 1 - shares["nothing"]
        shares = {name: (empty if name == "nothing" else share * (1 - empty) / rest) for name, share in shares.items()}
    names, weights = list(shares), np.array(list(shares.values()))
    if source == "public" and draw.chance(0.35):
        for i in range(1 + int(draw.chance(0.6))):
            w.say("，" if i else "").say(draw.pick(NOTICES))
        w.clauses.append((0, len(w.text), "notice", 0))
        w.tags.append("notice")
        return w.say("。")
    if source == "tech":
        w.say(f"{rng.integers(1, 9)}" + draw.pick(("、", "．", ".")))
    elif draw.chance(0.04):
        w.say(draw.pick(("★", "😀")))
        w.tags.append("symbol")
    n = 1 + int(rng.poisson(CLAUSES[source] - 1))
    joints = ("，", "；", "，") if source != "hosted" else ("，", "", " ")
    for i in range(min(n, 5)):
        if i:
            joint = draw.pick(joints)
            if not joint.strip():
                w.tags.append("run-on")
            w.say(joint)
        start, family = len(w.text), names[int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum()))]
        core = _FAMILIES[family](w, draw)
        w.clauses.append((start, len(w.text), family, core))
    if source == "hosted" and draw.chance(0.08):
        w.say("……")
        w.tags.append("cut off")
    else:
        w.say("。" if draw.chance(0.8) else "；")
    return w


def _typo(w: _Writer, draw: _World) -> None:
    """One character replaced, so that offsets stay."""
    places = [i for i, letter in enumerate(w.text) if "一" <= letter <= "鿿"]
    if places:
        at = places[int(draw.rng.integers(len(places)))]
        w.text = w.text[:at] + draw.pick("的得地作做在再以已") + w.text[at + 1 :]
        w.tags.append("typo")


def postings(
    n: int, seed: int, *, mix: Mapping[str, float], name: str = "", years: Sequence[int] = YEARS, length: float = 11.4
) -> list[Advert]:
    """Sentences of ``n`` synthetic ads.

    Args:
        mix: source -> share of the ads.
        name: what ids begin with, after ``synth_``.
        years: an ad's year is drawn from these.
        length: mean number of sentences of an ad.

    Raises:
        ValueError: an unknown source or no share at all.
    """
    if not mix or set(mix) - set(SOURCES) or sum(mix.values()) <= 0:
        raise ValueError(f"mix {dict(mix)}: shares of {', '.join(SOURCES)}")
    found: list[Advert] = []
    names, total = list(mix), np.cumsum(list(mix.values())) / sum(mix.values())
    # Shares are met to within one ad, in an order that the seed draws.
    places = (np.random.default_rng((seed, 37)).permutation(n) + 0.5) / max(1, n)
    for p in range(n):
        rng = np.random.default_rng((seed, 41, p))
        source = names[int(np.searchsorted(total, places[p]))]
        year, posting = int(rng.choice(years)), f"synth_{name}{seed}_{p:04d}"
        count, order = max(3, int(rng.poisson(length))), 0
        while order < count:
            w = sentence(rng, source, year)
            if rng.random() < 0.04:
                _typo(w, _World(rng, year))
            # Notices of public bodies repeat whole sentences back to back.
            for _ in range(1 + int(source == "public" and rng.random() < 0.12)):
                parts = (tuple(w.spans), tuple(w.near), tuple(w.clauses), tuple(dict.fromkeys(w.tags)))
                found.append(Advert(f"{posting}-s{order:04d}", posting, order, source, year, w.text, *parts))
                order += 1
    return found
