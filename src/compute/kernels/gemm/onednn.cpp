// oneDNN's fp32 matrix product as libtorch carries it. Built with the feature `compute`, called from onednn.rs.

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>

namespace at::native {
// Declared in ATen/native/mkldnn/Matmul.h; exported by libtorch_cpu.
TORCH_API void mkldnn_matmul(const Tensor&, const Tensor&, const Tensor&, float, float);
}

// C = A B + beta C over fp32 memory of the caller; strides in elements. Returns 0, or 1 with the reason in `why`.
extern "C" int seedbed_onednn_matmul(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k,
                                     const int64_t a_strides[2], const int64_t b_strides[2], int64_t c_row,
                                     float beta, char* why, size_t why_len) noexcept {
  try {
    const auto f32 = at::TensorOptions(at::kFloat);
    const auto ta = at::from_blob(const_cast<float*>(a), {m, k}, {a_strides[0], a_strides[1]}, f32);
    const auto tb = at::from_blob(const_cast<float*>(b), {k, n}, {b_strides[0], b_strides[1]}, f32);
    const auto tc = at::from_blob(c, {m, n}, {c_row, 1}, f32);
    at::native::mkldnn_matmul(ta, tb, tc, beta, 1.0f);
    return 0;
  } catch (const std::exception& e) {
    std::strncpy(why, e.what(), why_len - 1);
    why[why_len - 1] = '\0';
    return 1;
  } catch (...) {
    std::strncpy(why, "unknown exception", why_len - 1);
    why[why_len - 1] = '\0';
    return 1;
  }
}
