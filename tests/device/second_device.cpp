// A second device whose memory is the CPU's and whose kernels are the CPU's, but which minds where tensors are, as a
// GPU does. It refuses, and remembers even where the error is caught,
//   - operators that are given tensors of both devices,
//   - random numbers that are drawn on it: on another device they would be other ones,
//   - with torch.use_deterministic_algorithms, what has no deterministic CUDA kernel;
// and where told so, as an Apple GPU does, float64.

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

namespace {

using c10::DeviceType;
using Text = std::string;

const c10::Device kSecond(DeviceType::PrivateUse1, 0);

std::vector<Text> faults;  // one thread computes at a time, that of the forward or that of the backward pass
bool without_float64 = false;

void refuse(const Text& what) {
  faults.push_back(what);
  TORCH_CHECK(false, what);
}

// ---- memory

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* place = size > 0 ? std::malloc(size) : nullptr;
    return {place, place, &std::free, kSecond};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
};

Memory memory;
REGISTER_ALLOCATOR(DeviceType::PrivateUse1, &memory);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    auto* held = storage.unsafeGetStorageImpl();
    auto larger = memory.allocate(size);
    if (held->nbytes() > 0) std::memcpy(larger.get(), held->data(), std::min(size, held->nbytes()));
    held->set_data_ptr_noswap(std::move(larger));
    held->set_nbytes(size);
  }
};

Hooks hooks;

// One device, one stream, nothing that is still running.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = DeviceType::PrivateUse1;
  Guard() = default;
  explicit Guard(DeviceType) {}
  DeviceType type() const override { return static_type; }
  c10::Device exchangeDevice(c10::Device) const override { return kSecond; }
  c10::Device getDevice() const override { return kSecond; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ---- tensors: new ones, views, copies

bool is_here(const at::Tensor& tensor) { return tensor.device().type() == DeviceType::PrivateUse1; }

c10::ScalarType allowed(std::optional<c10::ScalarType> dtype) {
  const auto wanted = c10::dtype_or_default(dtype);
  TORCH_CHECK_TYPE(!(without_float64 && wanted == c10::kDouble), "this device has no float64");
  return wanted;
}

at::Tensor empty(
    c10::SymIntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  const c10::DispatchKeySet key(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, key, allowed(dtype), format);
}

at::Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::ScalarType> dtype,
    std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  const c10::DispatchKeySet key(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory, key, allowed(dtype));
}

at::Tensor as_strided(
    const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset.has_value()) start = offset->expect_int();
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor unfold(const at::Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}

// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  const auto options = tensor.options().device(c10::kCPU);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool) {
  on_cpu(target).copy_(on_cpu(self));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& target) {
  if (target.sizes() != self.sizes()) target.resize_(self.sizes());
  return copy_from(self, target, false);
}

at::Scalar local_scalar(const at::Tensor& self) { return at::_local_scalar_dense(on_cpu(self)); }

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<c10::MemoryFormat>) {
  auto* held = self.unsafeGetTensorImpl();
  held->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const size_t needed = (held->storage_offset() + held->numel()) * self.itemsize();
  if (needed > self.storage().nbytes()) hooks.resizePrivateUse1Bytes(self.storage(), needed);
  return self;
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto* held = self.unsafeGetTensorImpl();
  held->set_storage_keep_dtype(std::move(storage));
  held->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage storage) {
  const int64_t size = storage.nbytes() / self.itemsize();
  return set_storage(self, std::move(storage), 0, {size}, {1});
}

// ---- operators

bool begins_with(const Text& text, const Text& beginning) { return text.rfind(beginning, 0) == 0; }

// CUDA takes a number of the CPU, a tensor without dimensions, as an operand of these, and nowhere else.
bool takes_number(const Text& op) {
  static const std::set<Text> elementwise = {
      "add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "pow", "maximum",
      "minimum", "atan2", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor",
      "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift", "__lshift__",
      "__rshift__", "masked_fill", "where", "fill", "copy", "_index_put_impl", "index_put", "_foreach_mul",
      "_foreach_div", "_foreach_add"};
  Text bare = op.substr(op.find("::") + 2);
  if (bare.size() > 1 && bare.back() == '_' && !begins_with(bare, "__")) bare.pop_back();
  return elementwise.count(bare) > 0;
}

struct Found {
  bool here = false;          // a tensor of this device
  bool number_first = false;  // before it a number of the CPU
  Text elsewhere;             // tensors of the CPU that are none
};

void look_at(const at::Tensor& tensor, const Text& op, const Text& argument, Found& found) {
  if (!tensor.defined()) return;
  if (is_here(tensor)) {
    found.here = true;
  } else if (tensor.dim() > 0 || !takes_number(op)) {
    found.elsewhere += " " + argument + c10::str(tensor.sizes());
  } else if (!found.here) {
    found.number_first = true;
  }
}

Found look_for_tensors(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto& arguments = op.schema().arguments();
  const Text name = op.schema().name();
  Found found;
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& value = stack[stack.size() - arguments.size() + i];
    const Text& argument = arguments[i].name();
    if (argument == "indices" && name.find("index") != Text::npos) continue;  // CUDA takes those of the CPU
    if (value.isTensor()) {
      look_at(value.toTensor(), name, argument, found);
    } else if (value.isList()) {
      for (const auto& element : value.toListRef()) {
        if (element.isTensor()) look_at(element.toTensor(), name, argument, found);
      }
    }
  }
  return found;
}

// What torch.use_deterministic_algorithms says of CUDA kernels, as far as it concerns language models.
bool is_nondeterministic(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  static const std::set<Text> kernels = {
      "aten::nll_loss_forward", "aten::nll_loss2d_forward", "aten::put_", "aten::histc", "aten::kthvalue",
      "aten::cumprod", "aten::logcumsumexp"};
  const Text name = op.schema().name();
  if (kernels.count(name) > 0) return true;
  const auto& first = stack[stack.size() - op.schema().arguments().size()];
  if (begins_with(name, "aten::cumsum")) return first.toTensor().is_floating_point();
  if (name == "aten::median") return op.schema().returns().size() == 2;
  if (name == "aten::bincount") return stack[stack.size() - 2].isTensor() && stack[stack.size() - 2].toTensor().defined();
  return false;
}

void call_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  std::vector<at::Tensor> written;
  for (size_t i = 0; i < arguments.size(); i++) {
    auto& value = (*stack)[stack->size() - arguments.size() + i];
    if (!value.isTensor()) continue;
    if (arguments[i].alias_info() != nullptr && arguments[i].alias_info()->isWrite()) written.push_back(value.toTensor());
    value = on_cpu(value.toTensor());
  }
  op.callBoxed(stack);
  const size_t results = op.schema().returns().size();
  for (size_t i = 0; i < results; i++) {
    auto& value = (*stack)[stack->size() - results + i];
    value = written.empty() ? value.toTensor().to(kSecond) : written.at(i);
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Text name = op.schema().name();
  const Found found = look_for_tensors(op, *stack);
  if (found.here && !found.elsewhere.empty()) refuse(name + " mixes devices; on the CPU are" + found.elsewhere);
  if (op.hasTag(at::Tag::nondeterministic_seeded)) refuse(name + " draws random numbers on the device");
  if (at::globalContext().deterministicAlgorithms() && is_nondeterministic(op, *stack))
    refuse(name + " has no deterministic kernel on CUDA");
  if (found.here && found.number_first) {
    call_on_cpu(op, stack);  // torch's fallback puts results where the first tensor is
  } else {
    at::native::cpu_fallback(op, stack);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", unfold);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
}

// Most operators come in a form that torch builds of their out= variant for every device, and that would look at the
// devices by itself: they go to the fallback too.
void send_to_fallback() {
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (!begins_with(name.name, "aten::")) continue;
    const auto op = dispatcher.findSchema(name);
    if (op && op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional) &&
        !op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) {
      const Text short_name = name.name.substr(6) + (name.overload_name.empty() ? "" : "." + name.overload_name);
      library.impl(short_name.c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
    }
  }
}

TORCH_LIBRARY(second_device, m) {
  m.def("connect", [] {
    at::RegisterPrivateUse1HooksInterface(&hooks);
    send_to_fallback();
  });
  m.def("faults", [] { return faults; });
  m.def("forget_faults", [] { faults.clear(); });
  m.def("refuse_float64", [](bool refused) { without_float64 = refused; });
}
